#!/bin/sh
# The page: asks the API by its service name.
answer=$(timeout 5 wget -q -O - http://api:8080/cgi-bin/visit) || answer="the api does not answer"
printf 'Content-Type: text/html\r\n\r\n'
printf '<!doctype html><title>hello</title><h1>%s</h1>\n' "$GREETING"
printf '<p>%s, served by %s</p>\n' "$answer" "$(hostname)"
