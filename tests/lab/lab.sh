#!/usr/bin/env bash
# Brings a lab up in the background, and takes it down: `make lab`, `make lab-down`.
#   lab.sh up DIR COMMAND…      COMMAND runs the lab's tests; lab.txt says that the lab is ready
#   lab.sh down DIR COMMAND…
set -euo pipefail
verb=$1 dir=$2
shift 2
case $verb in
up)
	mkdir -p "$dir"
	if [ -e "$dir/lab.txt" ]; then
		echo 'there is a lab already; make lab-down takes it away' >&2
		exit 1
	fi
	rm -f "$dir/lab.sock"
	printf '#!/bin/sh\nexec curl -sS --fail-with-body --unix-socket %q -d "$*" http://lab/\n' "$(realpath "$dir")/lab.sock" >"$dir/lab"
	chmod +x "$dir/lab"
	LAB_DIR=$(realpath "$dir") setsid "$@" -run TestPlay ./tests/lab >"$dir/lab.log" 2>&1 </dev/null &
	lab=$!
	echo "$lab" >"$dir/lab.pid"
	until [ -e "$dir/lab.txt" ]; do
		if [ ! -d "/proc/$lab" ]; then
			cat "$dir/lab.log"
			exit 1
		fi
		sleep 0.2
	done
	cat "$dir/lab.txt"
	;;
down)
	if [ ! -e "$dir/lab.pid" ]; then
		echo 'there is no lab'
		exit 0
	fi
	lab=$(cat "$dir/lab.pid")
	if [ -d "/proc/$lab" ] && "$dir/lab" down; then
		while [ -d "/proc/$lab" ]; do sleep 0.2; done
		grep -E '^(---|ok|FAIL)' "$dir/lab.log" || true
	else # it is dead, and its hosts may not be
		LAB_DIR=$(realpath "$dir") "$@" -run TestSweep ./tests/lab
	fi
	rm -f "$dir"/lab*
	;;
esac
