#!/bin/sh
# What the image postgres of Docker does, with Debian's server: a folder of
# data that is empty is made, with the user, database and password of the
# environment, and what lies in /docker-entrypoint-initdb.d is run.
set -eu
case "${1:-postgres}" in -*) set -- postgres "$@" ;; esac
[ "$1" = postgres ] || exec "$@"
export PGDATA="${PGDATA:-/var/lib/postgresql/data}"
user=${POSTGRES_USER:-postgres} db=${POSTGRES_DB:-${POSTGRES_USER:-postgres}} method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE"); fi
mkdir -p "$PGDATA" /var/run/postgresql
chown postgres:postgres "$PGDATA" /var/run/postgresql
chmod 700 "$PGDATA"
find "$PGDATA" ! -user postgres -exec chown postgres:postgres {} +
if ! [ -s "$PGDATA/PG_VERSION" ]; then
	if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "$method" != trust ]; then
		echo 'Error: Database is uninitialized and superuser password is not specified.' >&2
		exit 1
	fi
	printf '%s\n' "${POSTGRES_PASSWORD:-none}" >/tmp/password
	chown postgres /tmp/password
	gosu postgres initdb --username="$user" --pwfile=/tmp/password --no-sync ${POSTGRES_INITDB_ARGS:-}
	rm /tmp/password
	echo "host all all all $method" >>"$PGDATA/pg_hba.conf"
	printf "listen_addresses = '*'\njit = off\n" >>"$PGDATA/postgresql.conf"
	gosu postgres pg_ctl -w -o "-c listen_addresses=" start
	if [ "$db" != postgres ]; then gosu postgres createdb -U "$user" "$db"; fi
	for f in /docker-entrypoint-initdb.d/*; do
		case "$f" in
		*.sh) . "$f" ;;
		*.sql) gosu postgres psql -v ON_ERROR_STOP=1 -U "$user" -d "$db" -f "$f" ;;
		esac
	done
	gosu postgres pg_ctl -w -m fast stop
fi
exec gosu postgres "$@"
