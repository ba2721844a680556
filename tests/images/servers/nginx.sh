#!/bin/sh
# What the image nginx of Docker does: templates become configuration.
set -eu
for f in /etc/nginx/templates/*.template; do
	[ -e "$f" ] || continue
	name=$(basename "$f" .template)
	script=$(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=\(.*\)$/s|${\1}|\2|g/p')
	sed "$script" "$f" >"/etc/nginx/conf.d/$name"
done
exec "$@"
