#!/bin/sh
# Stands in for slipway-guest: descriptor 3 is dockerd's listener, 5 the end record.
dockerd() {
  # LISTEN_PID must be the pid dockerd has itself.
  sh -c 'exec 4>&- 5>&-; LISTEN_FDS=1 LISTEN_PID=$$ exec dockerd -H fd://' &
  docker=$!
}
# Asked once more while it ends, it must go on waiting.
trap 'trap : TERM; kill -TERM $docker; while kill -0 $docker 2>/dev/null; do wait $docker; done; echo "end 0" >&5; exit 0' TERM
mount -o remount,rw /sys 2>/dev/null
dockerd
while kill -0 $docker 2>/dev/null; do wait $docker; done
exit 1
