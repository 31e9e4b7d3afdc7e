# Processes that compute for ever, in no provable spins, until another process ends them: background jobs, time limits.
# The run's first process waits for a signal itself.
trap 'over=1' USR1
(sleep 0.2; kill -USR1 $$) & while [ -z "$over" ]; do n=$((n + 1)); done; echo "counted" $((n > 0))
loop='while :; do :; done'
ended() { kill "$1"; wait "$1"; echo "ended with $?"; }
while :; do :; done & sleep 0.3; ended $!
(while :; do :; done) & (while :; do :; done) & last=$!
sleep 0.1; ended $last; kill %2 2>/dev/null || kill $(jobs -p) 2>/dev/null; wait; echo "all ended"
sh -c "$loop & sleep 0.1; kill \$!; wait \$!; echo \$?"
perl -e '$x++ while 1' & sleep 0.2; ended $!
perl -e '$x++ while 1' & true; ended $!
timeout 0.5 bash -c "$loop"; echo "too late $?"
timeout 0.5 perl -e '$x++ while 1'; echo "too late $?"
seq 3 | xargs -P 3 -I{} timeout 0.2 bash -c "echo {}; $loop"; echo "xargs $?"
(while :; do :; done) & sleep 0.1; ps -o stat= -p $! | cut -c1; ended $!
# Who sees the job's output: as far as it gets is the same each time, and nothing is lost.
(echo begun; n=0; while :; do n=$((n + 1)); done) > out & sleep 0.1; ended $!; cat out
echo EXIT-SUCCESS
