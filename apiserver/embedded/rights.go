package embedded

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/auth"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/apiserver/authority"
)

// etcd checks a watch's rights when the watch begins and never again: a removed peer
// would receive every change for as long as it keeps its connection. Here a watch
// ends as soon as its user's rights differ from those it began with, before anything
// more is sent. The client may start another one, which is checked again.

// guard refuses calls that a user has no right to, and ends watches whose user's
// rights have changed. users is set once the member has started.
type guard struct {
	closed atomic.Bool
	users  atomic.Pointer[auth.AuthStore]
}

// errClosed makes etcd's clients try again.
var errClosed = status.Error(codes.Unavailable, "the API server is starting")

// user returns whose certificate the call came with: "" if it names nobody, and then
// the call has no rights. checked is false until authentication is on: until then,
// rights do not matter.
func (g *guard) user(ctx context.Context) (name string, checked bool, err error) {
	store := g.users.Load()
	if store == nil {
		if g.closed.Load() {
			return "", false, errClosed
		}
		return "", false, nil
	}
	// etcd ignores the certificate of a call whose headers say that it came through
	// its HTTP gateway, and anybody can send those.
	if who := (*store).AuthInfoFromTLS(ctx); who != nil {
		name = who.Username
	}
	if g.closed.Load() && name != authority.Root {
		return "", false, errClosed
	}
	return name, (*store).IsAuthEnabled(), nil
}

func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	user, checked, err := g.user(ctx)
	if err != nil {
		return nil, err
	}
	if checked && !mayCall(user, info.FullMethod, req) {
		return nil, rpctypes.ErrGRPCPermissionDenied
	}
	return handle(ctx, req)
}

func (g *guard) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	user, checked, err := g.user(s.Context())
	switch {
	case err != nil:
		return err
	case checked && !mayCall(user, info.FullMethod, nil):
		return rpctypes.ErrGRPCPermissionDenied
	case checked && info.FullMethod == etcdserverpb.Lease_LeaseKeepAlive_FullMethodName:
		return handle(srv, guardedStream{s, user, info.FullMethod})
	case info.FullMethod != etcdserverpb.Watch_Watch_FullMethodName:
		return handle(srv, s)
	}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	w := &guardedWatch{ServerStream: s, guard: g, ctx: ctx, cancel: cancel}
	err = handle(srv, w)
	w.leave()
	if w.ended() {
		return rpctypes.ErrGRPCPermissionDenied
	}
	return err
}

// guardedWatch checks its user's rights before it sends something, if anybody's rights
// have changed since it last did.
type guardedWatch struct {
	grpc.ServerStream
	guard  *guard
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows
	begun    bool
	over     bool
	revision uint64
	rights   [sha256.Size]byte

	// busy says that etcd looks at a request; idle is closed when it no longer does.
	busy, left bool
	idle       chan struct{}
}

func (w *guardedWatch) Context() context.Context { return w.ctx }

func (w *guardedWatch) ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over
}

// leavePatience bounds the wait for etcd to finish with a request. It may have ended without
// asking for another one.
const leavePatience = time.Second

// RecvMsg notes that etcd has finished with one request, and that it looks at the next.
func (w *guardedWatch) RecvMsg(m any) error {
	w.mu.Lock()
	w.busy = false
	if w.idle != nil {
		close(w.idle)
		w.idle = nil
	}
	w.mu.Unlock()
	err := w.ServerStream.RecvMsg(m)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left {
		return status.Error(codes.Canceled, "the watch has ended")
	}
	w.busy = err == nil
	return err
}

// leave waits until etcd is done with the stream's requests. It looks at them in a goroutine
// that nobody waits for, and would panic if the database was closed under it.
func (w *guardedWatch) leave() {
	w.mu.Lock()
	w.left = true
	if !w.busy {
		w.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	w.idle = idle
	w.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(leavePatience):
	}
}

func (w *guardedWatch) SendMsg(m any) error {
	if !w.allowed() {
		w.cancel()
		return rpctypes.ErrGRPCPermissionDenied
	}
	return w.ServerStream.SendMsg(m)
}

func (w *guardedWatch) allowed() bool {
	store := w.guard.users.Load()
	if store == nil || !(*store).IsAuthEnabled() {
		return true // the API server turns it on before it lets anybody in
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	revision := (*store).Revision()
	if w.over || w.begun && revision == w.revision {
		return !w.over
	}
	rights, known := rightsOf(w.ServerStream.Context(), *store)
	w.over = !known || w.begun && rights != w.rights
	w.begun, w.revision, w.rights = true, revision, rights
	return !w.over
}

// rightsOf returns a digest of what the user of a connection may do; false if there is
// no such user.
func rightsOf(ctx context.Context, users auth.AuthStore) (sum [sha256.Size]byte, known bool) {
	who := users.AuthInfoFromTLS(ctx)
	if who == nil {
		return sum, false
	}
	user, err := users.UserGet(&etcdserverpb.AuthUserGetRequest{Name: who.Username})
	if err != nil {
		return sum, false
	}
	digest := sha256.New()
	for _, name := range user.Roles {
		role, err := users.RoleGet(&etcdserverpb.AuthRoleGetRequest{Role: name})
		if err != nil {
			return sum, false
		}
		for _, p := range role.Perm {
			fmt.Fprintf(digest, "%v %q %q\n", p.PermType, p.Key, p.RangeEnd)
		}
	}
	return [sha256.Size]byte(digest.Sum(nil)), true
}
