// Command serve is the program in the containers of the tests that carry
// load. It answers HTTP, and packets on the same port, with who it is and who
// asks, and ends as a server should: told to, it answers what was asked, says
// on each connection that this was the last answer, and ends when all
// connections have.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	address := flag.String("listen", ":80", "address of HTTP and of packets")
	echo := flag.String("echo", ":81", "address of a TCP server that returns what it gets")
	flag.Parse()
	log.SetFlags(log.Lmicroseconds | log.LUTC)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *address, *echo); err != nil {
		log.Print("serve: ", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address, echo string) error {
	web, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp4", address)
	if err != nil {
		return err
	}
	back, err := net.Listen("tcp4", echo)
	if err != nil {
		return err
	}
	s := &server{}
	go s.packets(packets)
	go s.accept(web, s.http)
	go s.accept(back, func(c net.Conn, _ bool) { _, _ = io.Copy(c, c) })
	<-ctx.Done()
	s.ending.Store(true)
	log.Print("told to end")
	// Connections that the kernel has taken are accepted in a moment.
	time.Sleep(100 * time.Millisecond)
	for s.open.Load() > 0 {
		time.Sleep(10 * time.Millisecond)
	}
	log.Print("all connections have ended")
	return nil
}

type server struct {
	ending atomic.Bool
	open   atomic.Int64 // connections
}

func (s *server) accept(l net.Listener, serve func(c net.Conn, late bool)) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			log.Print("accept: ", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		late := s.ending.Load()
		s.open.Add(1)
		go func() {
			defer s.open.Add(-1)
			defer c.Close()
			serve(c, late)
		}()
	}
}

// http serves one connection. A connection that came after the server was told
// to end is served, and told that it was late.
func (s *server) http(c net.Conn, late bool) {
	r := bufio.NewReader(c)
	for {
		q, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		last := q.Close || s.ending.Load()
		if q.URL.Path == "/drip" {
			err = drip(c, number(q, "kib", 100), time.Duration(number(q, "ms", 50))*time.Millisecond)
			last = true
		} else {
			word := "early"
			if late {
				word = "late"
			}
			err = head(c, last, []byte(fmt.Sprintf("%s %s %s %s\n", host(c.LocalAddr()), c.RemoteAddr(), word, os.Getenv("VERSION"))))
		}
		if err != nil || last {
			return
		}
	}
}

func head(c net.Conn, last bool, body []byte) error {
	closing := ""
	if last {
		closing = "Connection: close\r\n"
	}
	_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", closing, len(body), body)
	return err
}

// drip sends so many KiB, with a pause after each.
func drip(c net.Conn, kib int, pause time.Duration) error {
	if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", kib<<10); err != nil {
		return err
	}
	chunk := make([]byte, 1<<10)
	for n := range kib {
		for i := range chunk {
			chunk[i] = byte(i) ^ byte(n)
		}
		if _, err := c.Write(chunk); err != nil {
			return err
		}
		time.Sleep(pause)
	}
	return nil
}

func number(q *http.Request, name string, def int) int {
	n, err := strconv.Atoi(q.URL.Query().Get(name))
	if err != nil {
		return def
	}
	return n
}

// packets answers each packet with the own address, the asker's and its words.
func (s *server) packets(c net.PacketConn) {
	self := own()
	for b := make([]byte, 64<<10); ; {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			log.Print("packets: ", err)
			continue
		}
		// An answer that cannot be sent is one that the asker misses.
		_, _ = c.WriteTo([]byte(fmt.Sprintf("%s %s %s", self, from, b[:n])), from)
	}
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String()) // addresses of sockets have ports
	return h
}

// own is the first address that is not the loopback's.
func own() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		log.Print("own address: ", err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	return "none"
}
