#!/bin/sh
[ "$(echo "SELECT 1" | psql --host 127.0.0.1 --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" --quiet --no-align --tuples-only)" = 1 ]
