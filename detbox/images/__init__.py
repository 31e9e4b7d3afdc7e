"""Root file systems: recipes, a content-addressed store, tarballs and OCI layouts."""
