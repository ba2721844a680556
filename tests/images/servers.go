package images

import (
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

//go:embed servers
var serverFiles embed.FS

// A server is an image with a real server out of Debian's packages, which acts
// as the image of the same name in Docker's library as far as the stacks of the
// tests use it. There is one version of each, whatever tag a stack asks for.
type server struct {
	config Config
	files  map[string]string // names in the folder servers, by the path in the image
	texts  map[string]string // further files
}

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var servers = map[string]server{
	"postgres": {
		config: Config{
			Packages: &Packages{Names: []string{"postgresql-15", "gosu"}, Without: []string{"postgresql-common", "postgresql-client-common", "ssl-cert"}},
			Users:    []string{"postgres:999:/var/lib/postgresql"}, Volumes: []string{"/var/lib/postgresql/data"},
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin", "LANG=C.UTF-8", "PGDATA=/var/lib/postgresql/data"},
			Entrypoint: []string{"docker-entrypoint.sh"}, Cmd: []string{"postgres"}, StopSignal: "SIGINT",
			Dirs: map[string]int64{"var/lib/postgresql/data": 0o700, "docker-entrypoint-initdb.d": 0o755}, Owners: map[string]int{"var/lib/postgresql": 999, "var/lib/postgresql/data": 999},
		},
		files: map[string]string{"usr/local/bin/docker-entrypoint.sh": "postgres.sh"},
	},
	"mariadb": {
		config: Config{
			Packages: &Packages{Names: []string{"mariadb-server-core", "mariadb-client", "mariadb-server", "gosu"},
				Without: []string{"libdbi-perl", "libdbd-mariadb-perl", "galera-4", "gawk", "lsof", "socat", "libconfig-inifiles-perl", "libterm-readkey-perl"}},
			Users: []string{"mysql:999:/var/lib/mysql"}, Volumes: []string{"/var/lib/mysql"}, Env: []string{searchPath},
			Entrypoint: []string{"docker-entrypoint.sh"}, Cmd: []string{"mariadbd"},
			Dirs: map[string]int64{"var/lib/mysql": 0o755, "docker-entrypoint-initdb.d": 0o755}, Owners: map[string]int{"var/lib/mysql": 999},
		},
		files: map[string]string{"usr/local/bin/docker-entrypoint.sh": "mariadb.sh"},
	},
	"redis": {
		config: Config{
			Packages: &Packages{Names: []string{"redis-server", "gosu"}}, Users: []string{"redis:999:/data"}, Volumes: []string{"/data"}, Env: []string{searchPath},
			Entrypoint: []string{"docker-entrypoint.sh"}, Cmd: []string{"redis-server"}, WorkingDir: "/data",
			Dirs: map[string]int64{"data": 0o755}, Owners: map[string]int{"data": 999},
		},
		files: map[string]string{"usr/local/bin/docker-entrypoint.sh": "redis.sh"},
	},
	"nginx": nginx(map[string]string{"etc/nginx/conf.d/default.conf": "nginx-default.conf"}),
	// What a stack of the tests builds on it: a proxy in front of the service web.
	"nginx-custom": nginx(map[string]string{"etc/nginx/conf.d/default.conf": "nginx-web.conf"}),
	"httpd": {
		config: Config{
			Packages: &Packages{Names: []string{"apache2-bin", "media-types"}}, Users: []string{"www-data:33:/var/www"}, Env: []string{searchPath},
			Cmd: []string{"httpd-foreground"}, WorkingDir: "/usr/local/apache2", StopSignal: "SIGWINCH",
		},
		files: map[string]string{"usr/local/apache2/conf/httpd.conf": "httpd.conf"},
		texts: map[string]string{"usr/local/bin/httpd-foreground": "#!/bin/sh\nexec apache2 -DFOREGROUND -f /usr/local/apache2/conf/httpd.conf\n",
			"usr/local/apache2/htdocs/index.html": "<html><body><h1>It works!</h1></body></html>\n"},
	},
	"caddy": {
		config: Config{
			Packages: &Packages{Names: []string{"caddy"}, Without: []string{"libnss3-tools"}}, Env: []string{searchPath, "XDG_CONFIG_HOME=/config", "XDG_DATA_HOME=/data"},
			Cmd: []string{"caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"}, WorkingDir: "/srv",
			Dirs: map[string]int64{"srv": 0o755, "data": 0o755, "config": 0o755},
		},
	},
}

func nginx(site map[string]string) server {
	s := server{
		config: Config{
			Packages: &Packages{Names: []string{"nginx"}}, Users: []string{"nginx:101:/nonexistent"}, Env: []string{searchPath},
			Entrypoint: []string{"docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT",
			Dirs: map[string]int64{"var/lib/nginx": 0o755, "var/log/nginx": 0o755, "etc/nginx/conf.d": 0o755},
		},
		files: map[string]string{"usr/local/bin/docker-entrypoint.sh": "nginx.sh", "etc/nginx/nginx.conf": "nginx.conf"},
		texts: map[string]string{"usr/share/nginx/html/index.html": "<title>Welcome to nginx!</title>\n"},
	}
	maps.Copy(s.files, site)
	return s
}

// Servers are the names of the images that WriteServer makes.
func Servers() []string {
	return slices.Sorted(maps.Keys(servers))
}

// all returns the files that are laid over those of the packages.
func (s server) all() (map[string]string, error) {
	files := maps.Clone(s.texts)
	if files == nil {
		files = map[string]string{}
	}
	for p, f := range s.files {
		b, err := serverFiles.ReadFile("servers/" + f)
		if err != nil {
			return nil, err
		}
		files[p] = string(b)
	}
	return files, nil
}

// WriteServer writes the archive NAME.tar of a server into a folder, unless the
// one that is there was made by the same recipe. Packages are kept in cache.
func WriteServer(dir, cache, name string) error {
	files, err := servers[name].all()
	if err != nil {
		return err
	}
	recipe, err := json.Marshal([]any{servers[name].config, files, dispensable, dispensablePaths})
	if err != nil {
		return err
	}
	sum := fmt.Sprintf("%x\n", sha256.Sum256(recipe))
	archive, made := filepath.Join(dir, name+".tar"), filepath.Join(dir, name+".recipe")
	if b, err := os.ReadFile(made); err == nil && string(b) == sum {
		if _, err := os.Stat(archive); err == nil {
			return nil
		}
	}
	c, packages := servers[name].config, *servers[name].config.Packages
	packages.Cache = cache
	c.Name, c.Packages = name, &packages
	b, err := Busybox(files, c)
	if err != nil {
		return fmt.Errorf("server %s: %w", name, err)
	}
	if err := os.WriteFile(archive, b, 0o644); err != nil {
		return err
	}
	return os.WriteFile(made, []byte(sum), 0o644)
}
