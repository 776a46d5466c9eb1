package embedded

import (
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/wire"
)

// etcd's roles are about keys. Whoever has a certificate may besides grant leases
// without end, compact the history under everybody's watches, or have the whole
// database hashed. Here each user may call what it needs, and nothing else.

// reading is what every user may call. Which keys they get is decided by etcd.
var reading = []string{
	etcdserverpb.KV_Range_FullMethodName,
	etcdserverpb.KV_Txn_FullMethodName,
	etcdserverpb.Watch_Watch_FullMethodName,
	// Cilium's readers ask for the version and the members.
	etcdserverpb.Maintenance_Status_FullMethodName,
	etcdserverpb.Cluster_MemberList_FullMethodName,
	etcdserverpb.Auth_AuthStatus_FullMethodName,
	etcdserverpb.Auth_Authenticate_FullMethodName,
}

// writing is what agents may call besides.
var writing = []string{
	etcdserverpb.KV_Put_FullMethodName,
	etcdserverpb.KV_DeleteRange_FullMethodName,
}

// mayAsk says whether a user may make a call; req is nil for a stream, whose
// requests come later. An agent has one lease, of a number and a length that it
// does not choose; peers have none.
func mayAsk(user, method string, req any) bool {
	if user == authority.Root || slices.Contains(reading, method) || strings.HasPrefix(method, "/grpc.health.v1.Health/") {
		return true
	}
	node, agent := authority.AgentNode(user)
	if !agent {
		return false
	}
	switch method {
	case etcdserverpb.Lease_LeaseGrant_FullMethodName:
		r, ok := req.(*etcdserverpb.LeaseGrantRequest)
		return ok && r.ID == wire.AgentLease(node) && r.TTL <= int64(wire.AgentLeaseTTL.Seconds())
	case etcdserverpb.Lease_LeaseKeepAlive_FullMethodName:
		r, ok := req.(*etcdserverpb.LeaseKeepAliveRequest)
		return req == nil || ok && r.ID == wire.AgentLease(node)
	}
	return slices.Contains(writing, method)
}

// guardedStream looks at each request of a stream.
type guardedStream struct {
	grpc.ServerStream
	user, method string
}

func (s guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if !mayAsk(s.user, s.method, m) {
		return rpctypes.ErrGRPCPermissionDenied
	}
	return nil
}
