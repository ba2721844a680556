package main

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) clusterCmd() *cobra.Command {
	authority := group("ca", "Certificates of the cluster", a.caRotateCmd(), a.caClientCmd())
	return group("cluster", "Look after the cluster itself", a.formatFlag(a.clusterStatusCmd(), "table"), a.backupCmd(), a.restoreCmd(), authority)
}

func (a *app) clusterStatusCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show the managers, and what is wrong", Args: noArgs("wherry node ls lists all nodes"),
		Long: "Show the managers, who leads, how far each is behind, and what is wrong. The exit code is 1 when nobody leads.",
	}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		s, err := cl.ClusterStatus(c.Context())
		if err != nil {
			return err
		}
		if a.format != "table" {
			err = show(a, []api.ClusterStatus{s}, nil, nil)
		} else {
			err = a.showCluster(s)
		}
		if err == nil && s.Leader == "" {
			return &exitError{code: exitFailed}
		}
		return err
	})
	return c
}

func (a *app) showCluster(s api.ClusterStatus) error {
	var rows [][]string
	slices.SortFunc(s.Managers, func(x, y api.ManagerStatus) int { return cmp.Compare(x.Name, y.Name) })
	for _, m := range s.Managers {
		row := []string{m.Name, m.Address, m.Raft, "-", "-", "-", "-", "unreachable"}
		if m.Reachable {
			row = []string{m.Name, m.Address, m.Raft, strconv.FormatUint(m.Term, 10), strconv.FormatUint(m.Lag, 10),
				m.Skew.D().Round(time.Millisecond).String(), bytesText(m.FreeBytes), cmp.Or(m.Version, "-")}
		}
		rows = append(rows, row)
	}
	if err := table(a.out, []string{"MANAGER", "ADDRESS", "RAFT", "TERM", "LAG", "SKEW", "FREE", "VERSION"}, rows); err != nil {
		return err
	}
	ready := fmt.Sprintf("%d ready", s.Ready)
	if s.Leader == "" {
		ready = "which of them are alive is not known without a leader"
	}
	fmt.Fprintf(a.out, "\ncluster %s: %s, %s, %s\n", s.ClusterID, count(len(s.Managers), "manager"), count(s.Workers, "worker"), ready)
	for _, p := range s.Problems {
		fmt.Fprintf(a.out, "problem: %s\n", p)
	}
	return nil
}

func (a *app) backupCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "backup FILE", Short: "Write the cluster's state to a file", Args: someArgs("one FILE, or - for the output", 1, 1),
		Long: "Write the cluster's state to a file, while everything runs: stacks, nodes, volumes' places, the certificate authority; not the data of volumes.\n" +
			"The file is encrypted under the cluster's data key. Without that key, which --key-file writes, or a manager's folder, nobody can restore it:\n" +
			"keep the key file elsewhere than the backup.",
		Example: "  wherry cluster backup state.wherry --key-file state.key",
	}
	key := c.Flags().String("key-file", "", "also write the key that `wherry cluster restore` needs")
	force := c.Flags().Bool("force", false, "replace files that exist")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		for _, path := range []string{args[0], *key} {
			if _, err := os.Lstat(path); err == nil && !*force {
				return exitWith(exitFailed, "%s exists; give another name, or --force to replace it", path)
			}
		}
		var k api.Key
		var err error
		if *key != "" { // asked for first: only the host itself tells it
			if k, err = cl.ClusterKey(c.Context()); err != nil {
				return err
			}
		}
		if args[0] == "-" {
			err = cl.Backup(c.Context(), a.out)
		} else {
			err = writeNew(args[0], func(w io.Writer) error { return cl.Backup(c.Context(), w) })
		}
		if err == nil && *key != "" {
			err = writeNew(*key, func(w io.Writer) error { _, err := fmt.Fprintln(w, k.Key); return err })
		}
		if err != nil || args[0] == "-" {
			return err
		}
		st, err := os.Stat(args[0])
		if err != nil {
			return fmt.Errorf("look at the backup: %w", err)
		}
		fmt.Fprintf(a.err, "%s: %s. Restore on an empty host: wherry cluster restore %s --key-file %s\n",
			args[0], bytesText(st.Size()), args[0], cmp.Or(*key, "KEY"))
		return nil
	})
	return c
}

// writeNew writes a file that only its owner reads: whole, or not at all.
func writeNew(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (a *app) restoreCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make a data folder out of a backup", Args: someArgs("one FILE", 1, 1),
		Long: "Make a data folder out of a backup, on a host that has none. The daemon that is started on it is the only manager of the cluster,\n" +
			"with a new identity; the nodes of then are in its table, and those that are alive come back when they are pointed at it with --peer.",
		Example: "  wherry cluster restore state.wherry --key-file state.key\n  wherry daemon",
	}
	key := c.Flags().String("key-file", "", "file with the key, as `wherry cluster backup --key-file` writes it")
	dir := c.Flags().String("data-dir", defaultDataDir, "folder to make; it must be empty or not exist")
	c.RunE = func(c *cobra.Command, args []string) error {
		if *key == "" {
			return exitWith(exitUsage, "restore wants --key-file, which `wherry cluster backup --key-file` has written")
		}
		k, err := os.ReadFile(*key)
		if err != nil {
			return fmt.Errorf("read the key: %w", err)
		}
		f, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("read the backup: %w", err)
		}
		defer f.Close()
		if err := restore(*dir, f, strings.TrimSpace(string(k))); err != nil {
			return err
		}
		fmt.Fprintf(a.err, "%s is ready. Start it: wherry daemon --data-dir %s\n", *dir, *dir)
		return nil
	}
	return c
}

func (a *app) caRotateCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "rotate", Short: "Exchange the cluster's certificate authority", Args: noArgs("it has flags only"),
		Long: "Exchange the cluster's certificate authority, while everything runs: all nodes first trust a new root, then get certificates of it,\n" +
			"then the old one is dropped. Join tokens and client certificates have to be made anew.",
	}
	w := addWait(c)
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		before, err := cl.ClusterStatus(c.Context())
		if err != nil {
			return err
		}
		if err := cl.RotateCA(c.Context()); err != nil || !w.wait {
			return err
		}
		wctx, cancel := w.within(c.Context())
		defer cancel()
		p := newProgress(a.err, a.terminal())
		defer p.close()
		var s api.ClusterStatus
		for {
			next, err := cl.ClusterStatus(wctx)
			switch {
			case c.Context().Err() != nil:
				return &exitError{exitInterrupted, errors.New("no longer waiting; the exchange goes on, see `wherry cluster status`")}
			case wctx.Err() != nil:
				return &exitError{exitTimeout, fmt.Errorf("the exchange is not over after %s; it waits for %s", w.timeout, strings.Join(s.Waiting, ", "))}
			case err != nil && !errors.Is(err, spec.ErrUnavailable):
				return err
			}
			if err == nil {
				s = next
				if len(s.Roots) == 1 && s.Signer != before.Signer {
					p.close()
					fmt.Fprintf(a.err, "done, %.1f s\n", time.Since(p.started).Seconds())
					return nil
				}
				p.line("exchange", "waits for "+cmp.Or(strings.Join(s.Waiting, ", "), "the leader"))
			}
			pause(wctx, 200*time.Millisecond) // there is no index to poll it by
		}
	})
	return c
}

func (a *app) caClientCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "client NAME", Short: "Make a certificate to call the cluster from elsewhere", Args: someArgs("one NAME", 1, 1),
		Long: "Make a certificate by which somebody calls the cluster from elsewhere, with all rights. The key is made here and does not leave this host.",
		Example: "  wherry cluster ca client anna --out certs\n" +
			"  wherry --host https://192.0.2.1:4477 --cert certs/anna.pem --key certs/anna-key.pem --ca certs/ca.pem ls",
	}
	ttl := c.Flags().Duration("ttl", 0, "how long it holds (default 90 days)")
	out := c.Flags().String("out", ".", "folder for the three files")
	c.RunE = func(c *cobra.Command, args []string) error {
		name := args[0]
		if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return exitWith(exitUsage, "%q: want a name such as anna", name)
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		key, csr, err := newRequest(name)
		if err != nil {
			return err
		}
		got, err := cl.ClientCertificate(c.Context(), name, api.ClientRequest{CSR: csr, TTL: spec.Duration(*ttl)})
		if err != nil {
			return err
		}
		if err := os.MkdirAll(*out, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		files := map[string]string{"cert": filepath.Join(*out, name+".pem"), "key": filepath.Join(*out, name+"-key.pem"), "ca": filepath.Join(*out, "ca.pem")}
		for which, text := range map[string]string{"cert": got.Certificate, "key": key, "ca": got.Roots} {
			write := func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
			if err := writeNew(files[which], write); err != nil {
				return err
			}
		}
		fmt.Fprintf(a.out, "wherry --host https://MANAGER:4477 --cert %s --key %s --ca %s\n", files["cert"], files["key"], files["ca"])
		return nil
	}
	return c
}

// newRequest makes a key and a request for a certificate, both in PEM.
func newRequest(name string) (key, csr string, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", fmt.Errorf("encode the key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, k)
	if err != nil {
		return "", "", fmt.Errorf("make a certificate request: %w", err)
	}
	var kb, cb bytes.Buffer
	if err := errors.Join(pem.Encode(&kb, &pem.Block{Type: "PRIVATE KEY", Bytes: kder}), pem.Encode(&cb, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})); err != nil {
		return "", "", fmt.Errorf("encode the certificate request: %w", err)
	}
	return kb.String(), cb.String(), nil
}
