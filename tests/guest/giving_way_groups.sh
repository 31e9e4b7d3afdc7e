# Jobs that compute for ever, of a shell with job control: each has a process group of its own, and no signal ignored.
bash -mc 'while :; do :; done & sleep 0.2; kill $!; wait $!; echo "ended with $?"' 2>/dev/null
bash -mc 'perl -e "\$x++ while 1" & true; (n=0; while :; do n=$((n + 1)); done) & /bin/true; kill %1 %2; wait; echo "both"' \
    2>/dev/null
bash -mc '(while :; do :; done) & echo "read $(/bin/echo this)"; kill $!; wait $!; echo "ended with $?"' 2>/dev/null
echo EXIT-SUCCESS
