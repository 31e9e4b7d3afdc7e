# Pipelines, background jobs, wait -n, timeouts, traps, here-documents, process substitution, xargs -P, make -j.
set -e
seq 1000 | grep 7 | sort -rn | head -3 | tr '\n' ' '
echo "status ${PIPESTATUS[*]}"
timeout 1 sleep 0.1 && echo "in time"
timeout 0.1 sleep 1 || echo "too late $?"
for i in 3 1 2; do (sleep "0.0$i"; echo "job $i") & done
wait -n; echo "first done"
wait; echo "all done"
for i in 1 2 3 4 5 6 7 8; do (for k in 1 2 3; do echo "w$i.$k"; done) & done
wait
trap 'echo trapped' USR1
kill -USR1 $$
(trap 'echo child; exit 3' TERM; kill -TERM $BASHPID; sleep 1) || echo "trap status $?"
sleep 5 & victim=$!; kill $victim; wait $victim || echo "killed $?"
diff <(printf 'a\nb\n') <(printf 'a\nc\n') || true
coproc CO { while read -r x; do echo "<$x>"; done; }
echo ping >&"${CO[1]}"; read -r answer <&"${CO[0]}"; echo "$answer"
mkfifo fifo; (cat fifo; echo read) & echo through > fifo; wait $! || true
yes | head -1000 | md5sum
seq 40 | xargs -P 4 -n 1 sh -c 'echo "$1 $$"' x > parallel; wc -l < parallel; sort -n parallel | head -3
cat > makefile <<'M'
all: $(foreach i,1 2 3 4 5 6 7 8,t$(i))
t%: ; @echo target $* pid $$$$ >> made; touch $@
M
make -s -j4 && cat made && make -s -j4 -q && echo "up to date"
(ulimit -n 10; exec 3< /dev/null; echo "$(ls /proc/self/fd | wc -l)")
echo "$RANDOM $SRANDOM $EPOCHREALTIME $$ $PPID $BASHPID $SECONDS $UID $HOSTNAME"
date; times
echo EXIT-SUCCESS
