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

// etcd's roles cover keys only. Beyond them, anybody with a certificate could grant any
// number of leases, compact the history that others' watches need, or have the whole
// database hashed. Here each user may make the calls it needs and no others.

// reading lists the calls that every user may make. etcd decides which keys they get.
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

// writing lists the calls that agents may make as well.
var writing = []string{
	etcdserverpb.KV_Put_FullMethodName,
	etcdserverpb.KV_DeleteRange_FullMethodName,
}

// mayCall reports whether a user may make a call; req is nil for a stream, whose
// requests come later. An agent has one lease, whose ID and TTL are fixed; peers have
// none. Whoever has no name may do nothing.
func mayCall(user, method string, req any) bool {
	if user == "" {
		return false
	}
	if user == authority.Root || slices.Contains(reading, method) || strings.HasPrefix(method, "/grpc.health.v1.Health/") {
		return true
	}
	node, agent := authority.ParseAgentUser(user)
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

// guardedStream checks each request of a stream.
type guardedStream struct {
	grpc.ServerStream
	user, method string
}

func (s guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if !mayCall(s.user, s.method, m) {
		return rpctypes.ErrGRPCPermissionDenied
	}
	return nil
}
