//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// A public stack is one of testdata/corpus, with what is expected of it, said
// before it was run.
type publicStack struct {
	name string
	// servers are the images of real servers, by the name that the file uses.
	servers map[string]string
	// apps are the images that a small server stands in for, by that name.
	apps map[string]app
	// wait is how long its health checks may make an apply take.
	wait time.Duration
	// once are lines that write something, before the change.
	once []look
	// looks hold before the change, during it, and after it was taken back.
	looks []look
	// change is what the change makes different.
	change look
	// changed are the services whose tasks the change replaces; all others go on.
	changed []string
}

// look is a line that the shell of a task runs, or a page that a client of a
// published port gets, and what has to be in the answer.
type look struct {
	service, line string
	url           string // ":8080/", of the host
	want          string
	then          string // what is in it after the change
}

// app is a stand-in for the program that a stack is about: an HTTP server that
// answers with its version, and what health checks and commands ask for.
type app struct {
	port  int
	files map[string]string
	users []string
}

func fromTask(service, url string) look { return look{service: service, line: wgetLine(url)} }

func wgetLine(url string) string { return "timeout 5 wget -q -O - http://" + url }

func open(service, host string, port int) look {
	return look{service: service, line: fmt.Sprintf("timeout 5 nc %s %d </dev/null && echo it is open", host, port), want: "it is open"}
}

// answers says that a page is one of a stand-in.
func answers(service, url string) look {
	p := fromTask(service, url)
	p.want = "early"
	return p
}

// psql asks a server over the network.
func psql(service, host, user, password, db, query, want string) look {
	return look{service: service, want: want, line: fmt.Sprintf(`PGPASSWORD=%s timeout 10 psql -h %s -U %s -d %s -Atc "%s"`, password, host, user, db, query)}
}

func mysql(service, host, user, password, db, query, want string) look {
	return look{service: service, want: want, line: fmt.Sprintf(`timeout 10 mysql -h %s -u %s -p%s %s -Ne "%s"`, host, user, password, db, query)}
}

func redis(service, host, rest, want string) look {
	return look{service: service, want: want, line: fmt.Sprintf("timeout 5 redis-cli -h %s %s", host, rest)}
}

// became is a look at what the change makes different.
func (l look) became(before, after string) look {
	l.want, l.then = before, after
	return l
}

const (
	makeRow = "CREATE TABLE kept (word text); INSERT INTO kept VALUES ('kept');"
	askRow  = "SELECT word FROM kept"
)

var publicStacks = []publicStack{
	{
		name: "voting", servers: map[string]string{"redis:alpine": "redis", "postgres:15-alpine": "postgres"},
		apps: map[string]app{"dockersamples/examplevotingapp_vote": {port: 80}, "dockersamples/examplevotingapp_result": {port: 80}, "dockersamples/examplevotingapp_worker": {port: 80}},
		once: []look{psql("db", "db", "postgres", "postgres", "postgres", makeRow, "INSERT 0 1")},
		looks: []look{
			{url: ":8081/", want: "early 1"}, open("worker", "db", 5432), redis("redis", "redis", "ping", "PONG"),
			psql("db", "db", "postgres", "postgres", "postgres", askRow, "kept"),
			{service: "worker", line: "nslookup vote >/dev/null 2>&1; " + wgetLine("vote"), want: "early"}, // both are on back-tier
		},
		change: look{url: ":8080/"}.became("early 1", "early 2"), changed: []string{"vote"},
	},
	{
		name: "proxy", servers: map[string]string{"nginx-custom": "nginx-custom", "httpd": "httpd"},
		looks:  []look{fromTask("proxy", "web").became("served by httpd", "served by httpd")},
		change: look{url: ":80/"}.became("served by httpd", "closed"), changed: []string{"proxy"},
	},
	{
		name: "drupal-data", servers: map[string]string{"postgres:14": "postgres"}, apps: map[string]app{"custom-drupal": {port: 80}},
		once:   []look{psql("postgres", "postgres", "postgres", "mypasswd", "postgres", makeRow, "INSERT 0 1")},
		looks:  []look{psql("postgres", "postgres", "postgres", "mypasswd", "postgres", askRow, "kept"), {url: ":8080/", want: "early 1"}},
		change: psql("postgres", "postgres", "postgres", "mypasswd", "postgres", "SHOW max_connections", "").became("100", "77"), changed: []string{"postgres"},
	},
	{
		name: "wordpress", servers: map[string]string{"mariadb:10.6.4-focal": "mariadb"}, apps: map[string]app{"wordpress:latest": {port: 80}},
		once:   []look{mysql("db", "db", "wordpress", "wordpress", "wordpress", makeRow+askRow, "kept")},
		looks:  []look{open("wordpress", "db", 3306), mysql("db", "db", "wordpress", "wordpress", "wordpress", askRow, "kept")},
		change: look{url: ":80/"}.became("early 1", "early 2"), changed: []string{"wordpress"},
	},
	{
		name: "deploy-keys", servers: map[string]string{"nginx:latest": "nginx"},
		looks:  []look{fromTask("both", "no-deploy").became("Welcome to nginx", "Welcome to nginx")},
		change: fromTask("no-deploy", "deploy").became("Welcome to nginx", "the second page"), changed: []string{"deploy"},
	},
	{
		name: "chibisafe", servers: map[string]string{"caddy:2-alpine": "caddy"}, wait: time.Minute,
		apps:   map[string]app{"chibisafe/chibisafe:latest": {port: 8001}, "chibisafe/chibisafe-server:latest": {port: 8000}},
		looks:  []look{answers("chibisafe", "caddy/api/health"), {service: "chibisafe_server", line: "echo kept >>/app/uploads/file; echo done", want: "done"}, {service: "caddy", line: "cat /app/uploads/file", want: "kept"}},
		change: fromTask("caddy", "caddy/").became("early 1", "early 2"), changed: []string{"chibisafe"},
	},
	{
		name: "oneuptime", servers: map[string]string{"postgres:15": "postgres", "redis:7.0.12": "redis"}, wait: time.Minute,
		apps: map[string]app{
			"oneuptime/app:11.5.6": {port: 3002}, "oneuptime/nginx:11.5.6": {port: 7849}, "oneuptime/probe:11.5.6": {port: 3874},
			"clickhouse/clickhouse-server:25.7": {port: 8123, files: map[string]string{"bin/clickhouse-client": "#!/bin/sh\nexec wget -q -O /dev/null http://127.0.0.1:8123/\n"}},
		},
		once: []look{psql("postgres", "postgres", "postgres", "data", "oneuptimedb", makeRow, "INSERT 0 1")},
		looks: []look{
			psql("postgres", "postgres", "postgres", "data", "oneuptimedb", askRow, "kept"), redis("redis", "redis", "-a cache ping", "PONG"),
			answers("probe", "ingress:7849/"), {service: "clickhouse", line: "cat /etc/clickhouse-server/config.d/cluster.xml", want: "<shard>1"},
		},
		change: fromTask("ingress", "oneuptime:3002/").became("early 1", "early 2"), changed: []string{"oneuptime"},
	},
	{
		name: "mautic", servers: map[string]string{"mysql:8.0": "mariadb"}, wait: time.Minute,
		apps: map[string]app{
			"mautic/mautic:5.1.1-apache": {port: 80, users: []string{"www-data:33:/var/www"}, files: map[string]string{
				"entrypoint.sh": "#!/bin/sh\nmkdir -p /var/www/html/config\necho installed >/var/www/html/config/local.php\nexec serve -listen :80 -echo 127.0.0.1:0\n"}},
			"phpmyadmin/phpmyadmin": {port: 80},
		},
		once: []look{mysql("mysql", "mysql", "mautic", "secret", "mautic", makeRow+askRow, "kept")},
		looks: []look{
			mysql("mysql", "mysql", "mautic", "secret", "mautic", askRow, "kept"), open("mautic-worker", "mysql", 3306), answers("mautic-cron", "mautic/"),
			{service: "mautic-cron", line: "cat /var/www/html/config/local.php", want: "installed"},
		},
		change: fromTask("mautic", "phpmyadmin/").became("early 1", "early 2"), changed: []string{"phpmyadmin"},
	},
	{
		name: "activepieces", servers: map[string]string{"postgres:14": "postgres", "redis:7": "redis"}, wait: 2 * time.Minute,
		apps: map[string]app{"activepieces/activepieces:0.35.0": {port: 80}},
		once: []look{psql("postgres", "postgres", "activepieces", "secret", "activepieces", makeRow, "INSERT 0 1")},
		looks: []look{
			psql("postgres", "postgres", "activepieces", "secret", "activepieces", askRow, "kept"), redis("redis", "redis", "ping", "PONG"), open("activepieces", "redis", 6379),
		},
		change: fromTask("redis", "activepieces/").became("early 1", "early 2"), changed: []string{"activepieces"},
	},
	{
		name: "mixpost", servers: map[string]string{"mysql/mysql-server:8.0": "mariadb", "redis:latest": "redis"}, wait: 2 * time.Minute,
		apps: map[string]app{"inovector/mixpost:latest": {port: 80}},
		once: []look{redis("redis", "redis", "set word kept", "OK"), {service: "mixpost", line: "echo kept >storage-file; mv storage-file /var/www/html/storage/app/; echo done", want: "done"}},
		looks: []look{
			redis("redis", "redis", "get word", "kept"), mysql("mysql", "mysql", "mixpost", "secret", "mixpost", "SELECT 6*7", "42"),
			{service: "mixpost", line: "cat /var/www/html/storage/app/storage-file", want: "kept"}, answers("redis", "mixpost/"),
		},
		change: redis("redis", "redis", "config get maxmemory", "").became("\n0\n", "80740352"), changed: []string{"redis"},
	},
	{
		name: "budget-board", servers: map[string]string{"postgres:16": "postgres"},
		apps:   map[string]app{"ghcr.io/teelur/budget-board/server:release": {port: 80}, "ghcr.io/teelur/budget-board/client:release": {port: 6253}},
		once:   []look{psql("budget-board-db", "budget-board-db", "postgres", "secret", "budgetboard", makeRow, "INSERT 0 1")},
		looks:  []look{psql("budget-board-db", "budget-board-db", "postgres", "secret", "budgetboard", askRow, "kept"), answers("budget-board-server", "budget-board-client:6253/")},
		change: fromTask("budget-board-client", "budget-board-server/").became("early 1", "early 2"), changed: []string{"budget-board-server"},
	},
	{
		name: "penpot", servers: map[string]string{"postgres:15": "postgres", "redis:7.2": "redis"},
		apps: map[string]app{"penpotapp/frontend:2.6.1": {port: 8080}, "penpotapp/backend:2.6.1": {port: 6060}, "penpotapp/exporter:2.6.1": {port: 6061}, "sj26/mailcatcher:latest": {port: 1080}},
		once: []look{
			psql("penpot-postgres", "penpot-postgres", "penpot", "penpot", "penpot", makeRow, "INSERT 0 1"), {service: "penpot-frontend", line: "echo kept >/opt/data/assets/one; echo done", want: "done"},
		},
		looks: []look{
			psql("penpot-postgres", "penpot-postgres", "penpot", "penpot", "penpot", askRow, "kept"), redis("penpot-redis", "penpot-redis", "ping", "PONG"),
			psql("penpot-postgres", "penpot-postgres", "penpot", "penpot", "penpot", "SHOW data_checksums", "on"),
			answers("penpot-backend", "penpot-mailcatch:1080/"), {service: "penpot-backend", line: "cat /opt/data/assets/one", want: "kept"},
		},
		change: fromTask("penpot-frontend", "penpot-backend:6060/").became("early 1", "early 2"), changed: []string{"penpot-backend"},
	},
	{
		name: "dockercoins", servers: map[string]string{"redis": "redis"}, apps: map[string]app{"rng": {port: 80}, "hasher": {port: 80}, "webui": {port: 80}, "worker": {port: 80}},
		looks: []look{
			{url: ":8000/", want: "early 1"}, {url: ":8002/", want: "early 1"}, redis("redis", "redis", "ping", "PONG"), answers("worker", "hasher/"),
			{service: "webui", line: "ls -d /files/", want: "/files/"},
		},
		change: look{url: ":8001/"}.became("early 1", "early 2"), changed: []string{"rng"},
	},
	{
		name: "scale", servers: map[string]string{"alpine": "busybox"},
		looks: []look{
			{service: "db", line: "nslookup tasks.front 127.0.0.11 | grep -c '^Address.*10\\.'", want: "2"}, {service: "db", line: "env | grep -c MAYBE || true", want: "0"},
		},
		change: look{service: "back", line: "echo version $VERSION ."}.became("version .", "version 2 ."), changed: []string{"back"},
	},
	{
		name: "argilla", servers: map[string]string{"postgres:15-alpine": "postgres", "redis:7-alpine": "redis"},
		apps: map[string]app{"argilla/argilla-server:latest": {port: 6900}, "docker.elastic.co/elasticsearch/elasticsearch:8.12.2": {port: 9200}},
		once: []look{psql("argilla-db", "argilla-db", "postgres", "secret", "argilla", makeRow, "INSERT 0 1"), {service: "argilla-web", line: "echo kept >/var/lib/argilla/one; echo done", want: "done"}},
		looks: []look{
			psql("argilla-db", "argilla-db", "postgres", "secret", "argilla", askRow, "kept"), answers("argilla-web", "argilla-elasticsearch:9200/"),
			{service: "argilla-worker", line: "cat /var/lib/argilla/one", want: "kept"}, {service: "argilla-worker", line: "tr '\\0' ' ' </proc/1/cmdline", want: "python -m argilla_server worker --num-workers 2"},
		},
		change: redis("argilla-redis", "argilla-redis", "-a cache config get maxmemory", "").became("\n0\n", "80740352"), changed: []string{"argilla-redis"},
	},
	{
		name: "casdoor", servers: map[string]string{"postgres:16": "postgres"}, apps: map[string]app{"casbin/casdoor:latest": {port: 8000}}, wait: time.Minute,
		once:   []look{psql("casdoor-db", "casdoor-db", "casdoor", "secret", "casdoor", makeRow, "INSERT 0 1")},
		looks:  []look{psql("casdoor-db", "casdoor-db", "casdoor", "secret", "casdoor", askRow, "kept"), {service: "casdoor", line: "cat /conf/app.conf /init_data.json", want: "httpport = 8000\n{}"}},
		change: fromTask("casdoor-db", "casdoor:8000/").became("early 1", "early 2"), changed: []string{"casdoor"},
	},
	{
		name: "litellm", servers: map[string]string{"postgres:16-alpine": "postgres"}, apps: map[string]app{"ghcr.io/berriai/litellm:main-latest": {port: 4000}},
		once:   []look{psql("litellm-db", "litellm-db", "lite", "secret", "lite", makeRow, "INSERT 0 1")},
		looks:  []look{psql("litellm-db", "litellm-db", "lite", "secret", "lite", askRow, "kept"), open("litellm", "litellm-db", 5432)},
		change: fromTask("litellm-db", "litellm:4000/").became("early 1", "early 2"), changed: []string{"litellm"},
	},
	{
		name: "drupal", servers: map[string]string{"postgres:14": "postgres"}, apps: map[string]app{"drupal:9": {port: 80}},
		once:   []look{psql("postgres", "postgres", "postgres", "mypasswd", "postgres", makeRow, "INSERT 0 1"), {service: "drupal", line: "echo kept >/var/www/html/sites/one; echo done", want: "done"}},
		looks:  []look{psql("postgres", "postgres", "postgres", "mypasswd", "postgres", askRow, "kept"), {service: "drupal", line: "cat /var/www/html/sites/one", want: "kept"}},
		change: look{url: ":8080/"}.became("early 1", "early 2"), changed: []string{"drupal"},
	},
	{
		name: "nextcloud", servers: map[string]string{"postgres:alpine": "postgres"}, apps: map[string]app{"nextcloud:apache": {port: 80}},
		once:   []look{psql("db", "db", "nextcloud", "nextcloud", "nextcloud", makeRow, "INSERT 0 1")},
		looks:  []look{psql("db", "db", "nextcloud", "nextcloud", "nextcloud", askRow, "kept"), open("nc", "db", 5432)},
		change: look{url: ":80/"}.became("early 1", "early 2"), changed: []string{"nc"},
	},
	{
		name: "gitea", servers: map[string]string{"postgres:alpine": "postgres"}, apps: map[string]app{"gitea/gitea:latest": {port: 3000}},
		once:   []look{psql("db", "db", "gitea", "gitea", "gitea", makeRow, "INSERT 0 1"), {service: "gitea", line: "echo kept >/data/one; echo done", want: "done"}},
		looks:  []look{psql("db", "db", "gitea", "gitea", "gitea", askRow, "kept"), {service: "gitea", line: "cat /data/one", want: "kept"}},
		change: look{url: ":3000/"}.became("early 1", "early 2"), changed: []string{"gitea"},
	},
}

// shortStacks are those of the short form.
const shortStacks = 4

// TestPublicStacks runs stacks that nobody here wrote: up, healthy, reachable,
// changed, changed back, removed, and nothing left. STACKS is how many of them,
// or the name of one.
func TestPublicStacks(t *testing.T) {
	chosen := publicStacks
	if one := slices.IndexFunc(publicStacks, func(s publicStack) bool { return s.name == os.Getenv("STACKS") }); one >= 0 {
		chosen = publicStacks[one : one+1]
	} else {
		chosen = chosen[:min(count(t, "STACKS", shortStacks), len(chosen))]
	}
	l := lab.New(t)
	h := l.Host("host-1")
	h.Start()
	l.Plug("client")
	loadServers(t, h, chosen)
	for _, s := range chosen {
		l.Step(t, s.name, func(t *testing.T) { s.run(t, l, h) })
	}
}

const builtImages = "../../build/images"

// loadServers loads the images of servers under all names that stacks use.
func loadServers(t *testing.T, h *lab.Host, stacks []publicStack) {
	t.Helper()
	names := map[string][]string{}
	for _, s := range stacks {
		for name, server := range s.servers {
			names[server] = append(names[server], name)
		}
	}
	for server, as := range names {
		slices.Sort(as)
		load(t, h, serverImage(t, server, slices.Compact(as)...))
	}
}

// serverImage is the archive of a server, which `make images` makes, with names.
func serverImage(t *testing.T, server string, names ...string) []byte {
	t.Helper()
	var archive []byte
	var err error
	if server == "busybox" {
		archive = images.Must(t, server, "")
	} else {
		archive, err = os.ReadFile(filepath.Join(builtImages, server+".tar"))
	}
	if err == nil {
		archive, err = images.Named(archive, names...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// loadApps loads the stand-ins of a stack.
func (s publicStack) loadApps(t *testing.T, h *lab.Host) {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(builtImages, "serve"))
	if err != nil {
		t.Fatalf("make images makes it: %v", err)
	}
	for name, a := range s.apps {
		files := map[string]string{"bin/serve": string(program)}
		for p, text := range a.files {
			files[p] = text
		}
		b, err := images.Busybox(files, images.Config{Name: name, Users: a.users, Env: []string{"VERSION=1"}, Dirs: map[string]int64{"tmp": 0o1777, "var": 0o755},
			// What the stack's command is comes behind the dashes, unread.
			Entrypoint: []string{"serve", "-listen", fmt.Sprintf(":%d", a.port), "-echo", "127.0.0.1:0", "--"}})
		if err != nil {
			t.Fatal(err)
		}
		load(t, h, b)
	}
}

func (s publicStack) run(t *testing.T, l *lab.Lab, h *lab.Host) {
	s.loadApps(t, h)
	before := hostCensus(l, h)
	defer func() {
		if t.Failed() {
			t.Logf("%s", h.Wherry("logs", s.name, "--tail", "40").Stdout)
			h.Wherry("rm", s.name, "--volumes")
		}
	}()
	dir := filepath.Join("testdata", "corpus", s.name, "code")
	up := []string{"apply", "--name", s.name, "--timeout", (soon + s.wait + time.Minute).String(), "-f", filepath.Join(dir, "compose.yml")}
	started := time.Now()
	h.Must(up...)
	s.well(t, h)
	t.Logf("up and well after %s", short(time.Since(started)))
	for _, k := range s.once {
		k.check(t, l, h, s.name, false)
	}
	s.check(t, l, h, false)

	ids := taskIDs(t, h, s.name)
	h.Must(append(up, "-f", filepath.Join(dir, "change.yml"))...)
	s.well(t, h)
	s.check(t, l, h, true)
	s.replaced(t, ids, taskIDs(t, h, s.name))

	h.Must("rollback", s.name, "--timeout", "3m")
	s.well(t, h)
	s.check(t, l, h, false)

	h.Must("rm", s.name, "--volumes")
	if left := h.Must("ps", "--format", "{{.name}} {{.state}}"); strings.TrimSpace(left) != "" {
		t.Errorf("tasks after the removal:\n%s", left)
	}
	if left := h.Must("volume", "ls", "--format", "{{.name}}"); strings.TrimSpace(left) != "" {
		t.Errorf("volumes after the removal:\n%s", left)
	}
	lab.Eventually(t, soon, "nothing of the stack is left", func() error { return nothingSince(before, l, h) })
}

// well fails unless all tasks run, and are healthy where they have a check.
func (s publicStack) well(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, ti := range tasks(t, h, s.name) {
		if ti.State != spec.TaskRunning || ti.Health != spec.HealthNone && ti.Health != spec.HealthHealthy {
			t.Errorf("apply ended well, and %s is %s, its health %q", ti.Name, ti.State, ti.Health)
		}
	}
}

func (s publicStack) check(t *testing.T, l *lab.Lab, h *lab.Host, changed bool) {
	t.Helper()
	for _, k := range append(slices.Clone(s.looks), s.change) {
		k.check(t, l, h, s.name, changed)
	}
}

func (k look) check(t *testing.T, l *lab.Lab, h *lab.Host, stack string, changed bool) {
	t.Helper()
	want := k.want
	if changed && k.then != "" {
		want = k.then
	}
	lab.Eventually(t, soon, fmt.Sprintf("%s %s%s", stack, k.service+" "+k.line, k.url), func() error {
		var out string
		var err error
		if k.url != "" {
			out, err = fetch(l, "client", "http://"+h.IP+k.url)
		} else {
			out, err = h.Try("exec", stack+"/"+k.service, "--", "sh", "-c", k.line)
		}
		if err != nil || !strings.Contains(out, want) {
			return fmt.Errorf("want %q, got %q, %w", want, out, err)
		}
		return nil
	})
}

// replaced fails unless the change has replaced the tasks of the services that
// it is about, and those alone.
func (s publicStack) replaced(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, id := range before {
		service := strings.Split(name, ".")[1]
		if same, want := after[name] == id, !slices.Contains(s.changed, service); same != want {
			t.Errorf("%s: task %s, after the change %s", name, id, after[name])
		}
	}
}

func taskIDs(t *testing.T, h *lab.Host, stack string) map[string]string {
	t.Helper()
	ids := map[string]string{}
	for _, ti := range tasks(t, h, stack) {
		ids[ti.Name] = string(ti.ID)
	}
	return ids
}

// hostCensus is what is on the machine and in the host's own network.
func hostCensus(l *lab.Lab, h *lab.Host) lab.Census {
	c := lab.TakeCensus()
	for _, args := range [][]string{{"ip", "-o", "link"}, {"ip", "-o", "-4", "addr"}, {"ip", "-4", "route", "show", "table", "all"}} {
		for _, line := range strings.Split(l.In(h.Name, args...).Stdout, "\n") {
			c["host "+args[len(args)-1]+" "+strings.TrimSpace(line)] = true
		}
	}
	return c
}

// nothingSince is an error that lists what is there and was not before.
func nothingSince(before lab.Census, l *lab.Lab, h *lab.Host) error {
	if left := before.Diff(hostCensus(l, h)); len(left) > 0 {
		return fmt.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
	return nil
}
