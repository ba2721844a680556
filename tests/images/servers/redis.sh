#!/bin/sh
# What the image redis of Docker does, with Debian's server, which unlike that
# image's refuses other hosts while it has no password.
set -eu
case "${1:-redis-server}" in -*|*.conf) set -- redis-server "$@" ;; esac
[ "$1" = redis-server ] || exec "$@"
find /data ! -user redis -exec chown redis:redis {} +
exec gosu redis "$@" --protected-mode no
