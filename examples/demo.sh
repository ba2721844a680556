#!/usr/bin/env bash
# Brings up a daemon on this host, applies the hello stack and shows that it
# heals. Safe to run again: what runs already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
wherry=bin/wherry
if [ -t 1 ]; then say() { printf '\n\033[1m%s\033[0m\n' "$*"; }; else say() { printf '\n%s\n' "$*"; }; fi
w() { $sudo "$wherry" "$@"; }
page() { timeout 5 curl -sf http://127.0.0.1:8080/ || timeout 5 busybox wget -q -O - http://127.0.0.1:8080/; }

if ! w version --daemon >/dev/null 2>&1; then
	say 'starting the daemon (log: /var/log/wherry.log)'
	$sudo sh -c 'setsid nohup "$0" daemon >>/var/log/wherry.log 2>&1 </dev/null &' "$PWD/$wherry"
	for _ in $(seq 150); do
		w node ls >/dev/null 2>&1 && break
		sleep 0.2
	done
	w node ls >/dev/null || { echo "the daemon does not answer:" >&2; $sudo tail -20 /var/log/wherry.log >&2; exit 1; }
fi

say 'loading the example images'
w image load build/images/busybox.tar

say 'wherry apply -f examples/hello/stack.yml'
w apply -f examples/hello/stack.yml
w ps hello

say 'the published page: http://127.0.0.1:8080/'
page

say 'killing the store'
id=$(w ps hello/store --format '{{.id}} {{.status.pid}}')
pid=${id##* }
$sudo kill -9 "$pid"
started=$(date +%s%N)
new=$pid
while [ "$new" = "$pid" ] || [ "$new" = 0 ] || ! [ -d "/proc/$new" ]; do
	[ $(($(date +%s%N) - started)) -lt 30000000000 ] || { echo 'it did not come back within 30 s' >&2; exit 1; }
	new=$(w ps hello/store --format '{{if .status.pid}}{{.status.pid}}{{else}}0{{end}}')
done
echo "process $pid was killed, process $new runs $((($(date +%s%N) - started) / 1000000)) ms later"
for _ in $(seq 100); do
	page | grep -q 'visit number [0-9]' && break
	sleep 0.1
done
page
w ps hello

say 'the stack goes on running. Next:'
echo "  $sudo $wherry logs hello"
echo "  $sudo $wherry service scale hello/web=3"
echo "  $sudo $wherry rm hello --volumes && $sudo pkill -TERM -xf '$PWD/$wherry daemon'   # stop and clean up"
