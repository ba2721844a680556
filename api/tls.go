package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"wherry.dev/spec"
)

// DefaultPort is the port of a daemon.
const DefaultPort = "4477"

// TLSFiles are the PEM files by which a person or tool calls a daemon from
// elsewhere, as `wherry cluster ca client NAME` writes them.
type TLSFiles struct{ Cert, Key, CA string }

// tlsIdentity is a client's side of a TLS connection.
type tlsIdentity struct {
	files TLSFiles
	leaf  *x509.Certificate
	roots *x509.CertPool
}

// NewTLSClient returns a client for host, "https://IP:PORT". The daemon is
// known by its certificate, not by its address.
func NewTLSClient(host string, f TLSFiles) (*Client, error) {
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, spec.Invalidf("host %q: want https://IP:PORT", host)
	}
	if f.Cert == "" || f.Key == "" || f.CA == "" {
		return nil, spec.Invalidf("host %s: it must be called with a certificate; make one on a manager with `wherry cluster ca client NAME`, then give --cert, --key and --ca", host)
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), DefaultPort)
	}
	id, cert, err := loadIdentity(f)
	if err != nil {
		return nil, err
	}
	config := func(protos ...string) *tls.Config {
		return &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: protos,
			// verify does it: the name of a node is no name of a host.
			InsecureSkipVerify: true, VerifyConnection: id.verify,
		}
	}
	c := &Client{host: host, base: "https://" + addr, tls: id}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	c.dial = func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{NetDialer: dialer, Config: config("http/1.1")}
		return d.DialContext(ctx, "tcp", addr)
	}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: config("h2", "http/1.1"), TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second,
	}}
	return c, nil
}

func loadIdentity(f TLSFiles) (*tlsIdentity, tls.Certificate, error) {
	fail := func(format string, args ...any) (*tlsIdentity, tls.Certificate, error) {
		return nil, tls.Certificate{}, spec.Invalidf(format, args...)
	}
	certPEM, err := os.ReadFile(f.Cert)
	if err != nil {
		return fail("read certificate: %v", err)
	}
	keyPEM, err := os.ReadFile(f.Key)
	if err != nil {
		return fail("read key: %v", err)
	}
	rootsPEM, err := os.ReadFile(f.CA)
	if err != nil {
		return fail("read roots: %v", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fail("certificate %s with key %s: %v", f.Cert, f.Key, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return fail("roots %s: there is no certificate in the file", f.CA)
	}
	return &tlsIdentity{files: f, leaf: cert.Leaf, roots: roots}, cert, nil
}

// grace is how long after its end the certificate of a node still says who the
// node is, as package cluster/ca has it: one that was away renews it by then.
const grace = 30 * 24 * time.Hour

// verify accepts the nodes of the cluster that the client's certificate is of.
func (t *tlsIdentity) verify(cs tls.ConnectionState) error {
	chain := cs.PeerCertificates // a client always gets one
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		others.AddCert(c)
	}
	at := time.Now()
	if end := chain[0].NotAfter; at.After(end) && at.Before(end.Add(grace)) {
		at = end
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: t.roots, Intermediates: others, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	name := chain[0].Subject
	if !slices.Contains(name.OrganizationalUnit, string(spec.RoleManager)) && !slices.Contains(name.OrganizationalUnit, string(spec.RoleWorker)) {
		return strangerError("the certificate that it shows is not that of a node")
	}
	if !slices.Equal(name.Organization, t.leaf.Subject.Organization) {
		return strangerError(fmt.Sprintf("it is of the cluster %s, and the certificate %s of %s", strings.Join(name.Organization, ","), t.files.Cert, strings.Join(t.leaf.Subject.Organization, ",")))
	}
	return nil
}

// strangerError says why the other side is not who was to be called.
type strangerError string

func (e strangerError) Error() string { return string(e) }

// refusal connects once more, only to hear why the other side cut a connection:
// with TLS 1.3 it refuses a certificate after the handshake, when this side
// writes already, and what it says then may get lost.
func (c *Client) refusal(cut error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return cut
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), alertText) {
		return err
	}
	return cut
}

const alertText = "remote error: tls: "

// wasCut reports whether err is the end of a connection without a word.
func wasCut(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || strings.Contains(err.Error(), "http2: client conn")
}

// unreachable puts a failure to connect into words; other errors stay.
func (t *tlsIdentity) unreachable(host string, err error) error {
	say := func(format string, args ...any) error {
		return fmt.Errorf("%w at %s: %s", ErrUnreachable, host, fmt.Sprintf(format, args...))
	}
	var (
		op       *net.OpError
		stranger strangerError
		unknown  x509.UnknownAuthorityError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
		alert    = strings.Contains(err.Error(), alertText)
	)
	switch {
	case errors.As(err, &stranger):
		return say("%v", stranger)
	case errors.As(err, &unknown):
		return say("its certificate comes from none of the roots in %s: it is of another cluster, or the authority was exchanged; get the roots anew with `wherry cluster ca client NAME`", t.files.CA)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return say("its certificate is not valid now (%s); is the clock of this host right?", invalid.Detail)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return say("what answers there does not speak TLS; is it the port of a daemon?")
	case alert && time.Now().After(t.leaf.NotAfter):
		return say("the certificate %s ended on %s; make a new one on a manager with `wherry cluster ca client NAME`", t.files.Cert, t.leaf.NotAfter.Format(time.DateOnly))
	case alert:
		return say("the daemon does not accept the certificate %s: it is of another cluster, or from a root that is no longer trusted; make a new one on a manager with `wherry cluster ca client NAME`", t.files.Cert)
	case wasCut(err):
		return say("it cut the connection: %v; has it just stopped?", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return say("nothing listens there; is `wherry daemon` running on that host?")
	case errors.As(err, &op) && op.Op == "dial" && op.Timeout():
		return say("it does not answer; is the host up, and does a firewall let its port through?")
	case errors.As(err, &op) && op.Op == "dial":
		return say("%v", op.Err)
	}
	return err
}
