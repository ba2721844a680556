package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Packages are the Debian packages of an image. Their scripts are not run: what
// these would do is done by the image's own files.
type Packages struct {
	// Names of packages; what they depend on comes too.
	Names []string
	// Without lists packages that only scripts of packages need.
	Without []string
	// Cache is the folder that packages are downloaded to, and found in again.
	Cache string
}

// dispensable packages are needed by scripts of packages, or by tools that no
// image runs.
var dispensable = []string{
	"adduser", "debconf", "dpkg", "init-system-helpers", "iproute2", "locales", "libc-l10n", "libllvm14", "libperl5.36", "libz3-4", "lsb-base", "openssl",
	"passwd", "perl", "perl-base", "perl-modules-5.36", "procps", "psmisc", "rsync", "sysvinit-utils", "tar", "ucf",
}

// dispensablePaths begin the names of what no image uses.
var dispensablePaths = []string{
	"usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/", "usr/share/perl", "usr/share/bash-completion/",
	"usr/lib/x86_64-linux-gnu/gconv/", "usr/lib/aarch64-linux-gnu/gconv/", "usr/lib/x86_64-linux-gnu/perl", "usr/lib/postgresql/15/lib/bitcode/", "usr/share/zoneinfo/right/", "usr/share/i18n/",
	"usr/share/mysql/mysql-test/", "lib/systemd/", "etc/init.d/", "etc/apparmor.d/",
	"usr/bin/aria_", "usr/bin/myisam", "usr/bin/mariadb-slap", "usr/bin/mariadb-tzinfo", "usr/bin/mariadb-plugin", "usr/bin/mariadb-conv", "usr/bin/mariadb-import",
	"usr/bin/mariadb-show", "usr/bin/mariadb-binlog", "usr/bin/innochecksum", "usr/bin/perror",
}

// entries returns the files of the packages by path.
func (p Packages) entries() (map[string]entry, error) {
	files, err := p.download()
	if err != nil {
		return nil, err
	}
	all := map[string]entry{}
	for _, f := range files {
		if err := unpack(f, all); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", filepath.Base(f), err)
		}
	}
	return all, nil
}

// download returns the archives of the packages and of all that they need.
// An empty list of installed packages makes apt name all of them.
func (p Packages) download() ([]string, error) {
	if err := os.MkdirAll(p.Cache, 0o755); err != nil {
		return nil, err
	}
	none := filepath.Join(p.Cache, "none-installed")
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		return nil, err
	}
	args := append([]string{"-o", "Dir::State::status=" + none, "-o", "Debug::NoLocking=1", "--no-install-recommends", "--print-uris", "-y", "install"}, p.Names...)
	out, err := run("", "apt-get", args...)
	if err != nil {
		return nil, fmt.Errorf("find %s (apt-get update, if they are not known): %w", strings.Join(p.Names, ", "), err)
	}
	var files, missing []string
	for _, line := range strings.Split(out, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasPrefix(line, "'") {
			continue
		}
		// NAME_VERSION_ARCH.deb, in which a colon is escaped.
		parts := strings.Split(fields[1], "_")
		if len(parts) != 3 {
			return nil, fmt.Errorf("apt-get names an archive %q", fields[1])
		}
		if slices.Contains(dispensable, parts[0]) || slices.Contains(p.Without, parts[0]) {
			continue
		}
		f := filepath.Join(p.Cache, fields[1])
		if _, err := os.Stat(f); err != nil {
			version, err := url.PathUnescape(parts[1])
			if err != nil {
				return nil, err
			}
			missing = append(missing, parts[0]+"="+version)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		return nil, errors.New("apt-get names no archives")
	}
	if len(missing) > 0 {
		if _, err := run(p.Cache, "apt-get", append([]string{"-o", "APT::Sandbox::User=root", "-q", "download"}, missing...)...); err != nil {
			return nil, fmt.Errorf("download packages: %w", err)
		}
	}
	return files, nil
}

func run(dir, program string, args ...string) (string, error) {
	c := exec.Command(program, args...)
	c.Dir = dir
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}

// unpack adds the files of a package.
func unpack(deb string, all map[string]entry) error {
	data, err := run("", "dpkg-deb", "--fsys-tarfile", deb)
	if err != nil {
		return err
	}
	r := tar.NewReader(strings.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := rel(h.Name)
		if name == "" || slices.ContainsFunc(dispensablePaths, func(p string) bool { return strings.HasPrefix(name+"/", p) }) {
			continue
		}
		e := entry{header: tar.Header{Name: name, Typeflag: h.Typeflag, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, Linkname: h.Linkname, Size: h.Size}}
		switch h.Typeflag {
		case tar.TypeDir:
			e.header.Name += "/"
			if _, ok := all[name]; ok {
				continue
			}
		case tar.TypeReg:
			if e.data, err = io.ReadAll(r); err != nil {
				return err
			}
		case tar.TypeLink: // within one package, to what came before
			first, ok := all[rel(h.Linkname)]
			if !ok {
				return fmt.Errorf("%s is a link to %s, which is not there", name, h.Linkname)
			}
			e = entry{header: first.header, data: first.data}
			e.header.Name = name
		case tar.TypeSymlink:
		default:
			return fmt.Errorf("%s is of type %c", name, h.Typeflag)
		}
		all[name] = e
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			if _, ok := all[d]; !ok {
				all[d] = entry{header: tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
			}
		}
	}
}
