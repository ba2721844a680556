#!/bin/sh
# What the images mariadb and mysql of Docker do, with Debian's server.
set -eu
case "${1:-mariadbd}" in -*) set -- mariadbd "$@" ;; mysqld) shift; set -- mariadbd "$@" ;; esac
[ "$1" = mariadbd ] || exec "$@"
shift
get() { # the value of MARIADB_$1 or MYSQL_$1, or what the file in …_FILE holds
	eval "v=\${MARIADB_$1:-\${MYSQL_$1:-}} f=\${MARIADB_$1_FILE:-\${MYSQL_$1_FILE:-}}"
	if [ -n "$f" ]; then cat "$f"; else printf %s "$v"; fi
}
data=/var/lib/mysql
mkdir -p "$data" /run/mysqld
find "$data" /run/mysqld ! -user mysql -exec chown mysql:mysql {} +
if ! [ -d "$data/mysql" ]; then
	trap 'rm -rf "${data:?}/mysql"' EXIT # a folder that is half made is made anew
	mariadb-install-db --user=mysql --datadir="$data" --skip-test-db --auth-root-authentication-method=normal >/dev/null
	root=$(get ROOT_PASSWORD) database=$(get DATABASE) user=$(get USER) password=$(get PASSWORD)
	[ -n "$root" ] || root=$(head -c 16 /dev/urandom | md5sum | cut -d' ' -f1) # the images say it in their log
	{ # a statement on each line, as --bootstrap reads them
		echo "SET @@SESSION.SQL_LOG_BIN=0;"
		echo "DELETE FROM mysql.global_priv WHERE user='';"
		echo "FLUSH PRIVILEGES;"
		echo "ALTER USER 'root'@'localhost' IDENTIFIED BY '$root';"
		echo "CREATE USER 'root'@'%' IDENTIFIED BY '$root';"
		echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
		if [ -n "$database" ]; then echo "CREATE DATABASE IF NOT EXISTS \`$database\`;"; fi
		if [ -n "$user" ] && [ "$user" != root ]; then
			echo "CREATE USER '$user'@'%' IDENTIFIED BY '$password';"
			if [ -n "$database" ]; then echo "GRANT ALL ON \`$database\`.* TO '$user'@'%';"; fi
		fi
	} >/tmp/first.sql
	mariadbd --user=mysql --datadir="$data" --bootstrap </tmp/first.sql
	for f in /docker-entrypoint-initdb.d/*.sql; do
		if [ -e "$f" ]; then { echo "USE \`$database\`;"; cat "$f"; } | mariadbd --user=mysql --datadir="$data" --bootstrap; fi
	done
	rm /tmp/first.sql
	trap - EXIT
fi
exec mariadbd --user=mysql --datadir="$data" --bind-address=0.0.0.0 "$@"
