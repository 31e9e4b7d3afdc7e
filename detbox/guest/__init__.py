"""What is mapped into every guest program: code of ours that it calls instead of the kernel."""
