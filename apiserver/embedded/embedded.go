// Package embedded runs a member of the cluster's etcd inside the API server, reachable
// over mutual TLS only, alone or with those of other API servers.
//
// Clients, the API server itself among them, connect with package store. Which members
// there are is decided in package members.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
)

// Numbers we chose. An apply is one transaction, so etcd's defaults (128 operations,
// 1.5 MiB) would limit manifests.
const (
	MaxTxnOps       = 4096
	MaxRequestBytes = 8 << 20
	// compaction is how much history is kept for watchers that lag behind.
	compaction = "10m"
	// catchUp is how many entries of its log a member keeps in memory, for others that lag
	// behind; those that lack more are sent the database. An entry has up to 1 MiB while
	// peers join, so that etcd's default of 5000 kept all of them, too.
	catchUp = 1000
	// keepAliveMin is the shortest interval at which clients may ping; those that ping
	// more often are disconnected.
	keepAliveMin = 5 * time.Second
)

// How a single member is listed in its own etcd.
const (
	defaultName = "weft"
	loneHost    = "127.0.0.1:2380"
	loneURL     = "https://" + loneHost
)

// Config of the member.
type Config struct {
	// Dir holds its data; created 0700 if missing.
	Dir string
	// Name is the member's name; defaultName if empty.
	Name string
	// Listen is the address for clients: host:port, or :port for every address;
	// port 0 takes a free one.
	Listen string
	// Advertise lists the addresses (host:port) that clients are told; if empty, they are
	// told Listen.
	Advertise []string
	// Cert and Key are files with the server's certificate and its key; CA is a file with
	// the certificates that clients' are verified against.
	Cert, Key, CA string
	// QuotaBytes limits the database; etcd refuses writes beyond it. 0 means 2 GiB.
	QuotaBytes int64
	// Closed makes the member answer only root until Open is called.
	Closed bool
	// Peers says how it meets other members; nil: it stays alone.
	Peers *Peers
	Log   *slog.Logger
}

// Server is a running member.
type Server struct {
	once    sync.Once // closes it
	dir     string
	etcd    *embed.Etcd
	addr    string
	closing *atomic.Bool
	removed *atomic.Bool
	guard   *guard
}

// Open ends Closed: from now on everybody is answered according to their rights.
func (s *Server) Open() { s.guard.closed.Store(false) }

// Start starts a member and returns once it serves clients. The caller closes it.
func Start(ctx context.Context, c Config) (*Server, error) {
	return start(ctx, c, func(*embed.Config) {})
}

// start is Start with a last change to etcd's own configuration.
func start(ctx context.Context, c Config, change func(*embed.Config)) (*Server, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	for _, check := range []func(dir string) error{checkRemoved, checkLog, checkDatabase} {
		if err := check(c.Dir); err != nil {
			return nil, fmt.Errorf("start etcd: %w", err)
		}
	}
	conf := embed.NewConfig()
	conf.Dir = c.Dir
	conf.Name = c.Name
	if conf.Name == "" {
		conf.Name = defaultName
	}
	if strings.HasPrefix(c.Listen, ":") {
		c.Listen = "0.0.0.0" + c.Listen // etcd wants an address
	}
	conf.ListenClientUrls = []url.URL{{Scheme: "https", Host: c.Listen}}
	conf.AdvertiseClientUrls = conf.ListenClientUrls
	if len(c.Advertise) > 0 {
		conf.AdvertiseClientUrls = nil
		for _, host := range c.Advertise {
			conf.AdvertiseClientUrls = append(conf.AdvertiseClientUrls, url.URL{Scheme: "https", Host: host})
		}
	}
	conf.ClientTLSInfo.CertFile, conf.ClientTLSInfo.KeyFile = c.Cert, c.Key
	conf.ClientTLSInfo.TrustedCAFile, conf.ClientTLSInfo.ClientCertAuth = c.CA, true
	listed, err := Listed(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	several := c.Peers.meet(conf, c.CA, len(listed))
	conf.TlsMinVersion = "TLS1.3"
	conf.MaxTxnOps, conf.MaxRequestBytes = MaxTxnOps, MaxRequestBytes
	conf.QuotaBackendBytes, conf.SnapshotCatchUpEntries = c.QuotaBytes, catchUp
	conf.AutoCompactionMode, conf.AutoCompactionRetention = embed.CompactorModePeriodic, compaction
	conf.GRPCKeepAliveMinTime = keepAliveMin
	conf.EnableGRPCGateway = false // it would act as the server itself
	closing, removed := new(atomic.Bool), new(atomic.Bool)
	starting := new(atomic.Bool)
	starting.Store(true)
	conf.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(logCore{log: c.Log, closing: closing, removed: removed}, zap.WithFatalHook(fatal{starting})))

	rights := new(guard)
	rights.closed.Store(c.Closed)
	conf.GRPCAdditionalServerOptions = []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(rights.unary, whileRemoved),
		grpc.ChainStreamInterceptor(rights.stream),
		// A request may outlive its client. If the database were closed under it, etcd
		// would panic.
		grpc.WaitForHandlers(true),
	}
	change(conf)

	etcd, err := startEtcd(conf)
	starting.Store(false)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", explain(c, err))
	}
	users := etcd.Server.AuthStore()
	rights.users.Store(&users)
	s := &Server{dir: c.Dir, etcd: etcd, addr: etcd.Clients[0].Addr().String(), closing: closing, removed: removed, guard: rights}
	waiting := time.NewTicker(waitingLine)
	defer waiting.Stop()
	for {
		select {
		case <-etcd.Server.ReadyNotify():
			return s, nil
		case err := <-etcd.Err():
			err = s.stopped(err)
			s.Close()
			return nil, fmt.Errorf("start etcd: %w", err)
		case <-etcd.Server.StopNotify():
			err := s.stopped(errStopped)
			s.Close()
			return nil, fmt.Errorf("start etcd: %w", err)
		case <-ctx.Done():
			s.Close()
			return nil, fmt.Errorf("start etcd: %w", ctx.Err())
		case <-waiting.C:
			if several {
				c.Log.Warn("waiting for other members of the store: too few of them answer", "members", len(listed))
			}
		}
	}
}

// startEtcd is embed.StartEtcd for data that may be damaged. Where etcd panics or exits,
// it returns an error that an operator can act on.
func startEtcd(conf *embed.Config) (etcd *embed.Etcd, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			if _, ok := cause.(runtime.Error); ok {
				cause = "its log cannot be read"
			}
			err = damaged(conf.Dir, fmt.Sprint(cause))
		}
	}()
	return embed.StartEtcd(conf)
}

// damaged returns an error that says what to do about data that etcd cannot start from.
func damaged(dir, cause string) error {
	return fmt.Errorf("its data in %s is damaged (%s): restore that folder from a backup; without one, move it away and start with an empty store, whose status says how nodes, objects and peers come back", filepath.Join(dir, "member"), cause)
}

// checkLog checks that the write-ahead log exists and is not empty. etcd creates its files
// elsewhere with their full size and renames them, so an empty one is damaged.
func checkLog(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil {
		return err
	}
	for _, path := range logs {
		if info, err := os.Stat(path); err == nil && info.Size() == 0 {
			return damaged(dir, path+" is empty")
		}
	}
	// etcd renames the folder into place after creating the first file.
	if _, err := os.Stat(filepath.Join(dir, "member", "wal")); err == nil && len(logs) == 0 {
		return damaged(dir, "its log "+filepath.Join(dir, "member", "wal")+" is gone")
	}
	return nil
}

// checkDatabase checks that the database can be opened and is complete. etcd opens it in a
// goroutine of its own, where a panic would end the process.
func checkDatabase(dir string) error {
	path := filepath.Join(dir, "member", "snap", "db")
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // etcd creates it, unless the log needs an existing one
	}
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		if _, err := os.Stat(filepath.Join(dir, "member", "wal")); errors.Is(err, fs.ErrNotExist) {
			return nil // the first start was interrupted between the two
		}
		return damaged(dir, path+" is empty")
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("%s is in use by another process: stop it first", path)
	}
	if err != nil {
		return damaged(dir, fmt.Sprintf("%s: %v", path, err))
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		if want := tx.Size(); want > info.Size() { // reading past its end would raise SIGBUS
			return damaged(dir, fmt.Sprintf("%s has %d bytes of %d", path, info.Size(), want))
		}
		return nil
	})
}

// fatal handles what etcd calls a fatal error. During the start it becomes the caller's
// error; afterwards it ends the process, as etcd expects.
type fatal struct{ starting *atomic.Bool }

// OnWrite implements zapcore.CheckWriteHook.
func (f fatal) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	if !f.starting.Load() {
		os.Exit(1)
	}
	text := entry.Message
	for _, field := range fields {
		if err, ok := field.Interface.(error); ok {
			text += ": " + err.Error()
		}
	}
	panic(text)
}

// Wait returns nil when ctx ends, and an error if the member stops by itself before. It
// does not stop the member: close its clients first, then call Close.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.etcd.Err():
		return fmt.Errorf("etcd stopped: %w", s.stopped(err))
	case <-s.etcd.Server.StopNotify():
		return fmt.Errorf("etcd stopped: %w", s.stopped(errStopped))
	}
}

// Close stops the member; closing twice is harmless.
func (s *Server) Close() {
	s.once.Do(func() {
		s.closing.Store(true)
		s.etcd.Close()
	})
}

// Addr is the address for clients on this machine: Listen with the actual port, and
// loopback if it listens on every address.
func (s *Server) Addr() string {
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return s.addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// explain adds what an operator can do about the usual reasons not to start.
func explain(c Config, err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, "address already in use"):
		return fmt.Errorf("%s is in use: stop the process that listens there, or choose another --etcd-listen: %w", c.Listen, err)
	case c.Peers != nil && c.Peers.Join != nil && (strings.Contains(text, "member count is unequal") || strings.Contains(text, "no match found for existing member")):
		return fmt.Errorf("%w: %w", ErrListed, err)
	case strings.Contains(text, "no space left"):
		return fmt.Errorf("the file system of %s is full: make space there: %w", c.Dir, err)
	}
	return err
}
