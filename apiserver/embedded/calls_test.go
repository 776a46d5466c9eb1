package embedded

import (
	"context"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/weft-mesh/weft/wire"
)

func TestEachUserCallsWhatItNeeds(t *testing.T) {
	own, foreign := wire.AgentLease("n1"), wire.AgentLease("n2")
	ttl := int64(wire.AgentLeaseTTL.Seconds())
	for _, test := range []struct {
		name, user, method string
		req                any
		want               bool
	}{
		{"the API server grants", "root", etcdserverpb.Lease_LeaseGrant_FullMethodName, &etcdserverpb.LeaseGrantRequest{TTL: 1 << 30}, true},
		{"a peer reads", "remote-west", etcdserverpb.KV_Range_FullMethodName, &etcdserverpb.RangeRequest{}, true},
		{"a peer watches", "remote-west", etcdserverpb.Watch_Watch_FullMethodName, nil, true},
		{"a peer asks for the version", "remote-west", etcdserverpb.Maintenance_Status_FullMethodName, &etcdserverpb.StatusRequest{}, true},
		{"a peer is asked for its health", "remote-west", "/grpc.health.v1.Health/Check", nil, true},
		{"a peer writes", "remote-west", etcdserverpb.KV_Put_FullMethodName, &etcdserverpb.PutRequest{}, false},
		{"a peer grants", "remote-west", etcdserverpb.Lease_LeaseGrant_FullMethodName, &etcdserverpb.LeaseGrantRequest{ID: own, TTL: ttl}, false},
		{"a peer revokes", "remote-west", etcdserverpb.Lease_LeaseRevoke_FullMethodName, &etcdserverpb.LeaseRevokeRequest{ID: own}, false},
		{"a peer keeps a lease", "remote-west", etcdserverpb.Lease_LeaseKeepAlive_FullMethodName, nil, false},
		{"a peer lists leases", "remote-west", etcdserverpb.Lease_LeaseLeases_FullMethodName, &etcdserverpb.LeaseLeasesRequest{}, false},
		{"a peer compacts", "remote-west", etcdserverpb.KV_Compact_FullMethodName, &etcdserverpb.CompactionRequest{}, false},
		{"a peer has everything hashed", "remote-west", etcdserverpb.Maintenance_HashKV_FullMethodName, &etcdserverpb.HashKVRequest{}, false},
		{"nobody grants", "nobody", etcdserverpb.Lease_LeaseGrant_FullMethodName, &etcdserverpb.LeaseGrantRequest{ID: own, TTL: ttl}, false},
		{"without a name, reads", "", etcdserverpb.KV_Range_FullMethodName, &etcdserverpb.RangeRequest{}, false},
		{"without a name, compacts", "", etcdserverpb.KV_Compact_FullMethodName, &etcdserverpb.CompactionRequest{}, false},
		{"an agent of no node writes", "agent-", etcdserverpb.KV_Put_FullMethodName, &etcdserverpb.PutRequest{}, false},
		{"an agent writes", "agent-n1", etcdserverpb.KV_Put_FullMethodName, &etcdserverpb.PutRequest{}, true},
		{"an agent deletes", "agent-n1", etcdserverpb.KV_DeleteRange_FullMethodName, &etcdserverpb.DeleteRangeRequest{}, true},
		{"an agent compacts", "agent-n1", etcdserverpb.KV_Compact_FullMethodName, &etcdserverpb.CompactionRequest{}, false},
		{"its lease", "agent-n1", etcdserverpb.Lease_LeaseGrant_FullMethodName, &etcdserverpb.LeaseGrantRequest{ID: own, TTL: ttl}, true},
		{"a lease of any number", "agent-n1", etcdserverpb.Lease_LeaseGrant_FullMethodName, &etcdserverpb.LeaseGrantRequest{TTL: ttl}, false},
		{"another agent's lease", "agent-n1", etcdserverpb.Lease_LeaseGrant_FullMethodName, &etcdserverpb.LeaseGrantRequest{ID: foreign, TTL: ttl}, false},
		{"for a year", "agent-n1", etcdserverpb.Lease_LeaseGrant_FullMethodName, &etcdserverpb.LeaseGrantRequest{ID: own, TTL: 365 * 86400}, false},
		{"it opens the stream", "agent-n1", etcdserverpb.Lease_LeaseKeepAlive_FullMethodName, nil, true},
		{"it keeps its lease", "agent-n1", etcdserverpb.Lease_LeaseKeepAlive_FullMethodName, &etcdserverpb.LeaseKeepAliveRequest{ID: own}, true},
		{"it keeps another's", "agent-n1", etcdserverpb.Lease_LeaseKeepAlive_FullMethodName, &etcdserverpb.LeaseKeepAliveRequest{ID: foreign}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := mayCall(test.user, test.method, test.req); got != test.want {
				t.Errorf("%s may call %s: %v", test.user, test.method, got)
			}
		})
	}
}

// Until the member has started, nobody's rights can be looked up.
func TestAClosedMemberThatStartsAnswersNobody(t *testing.T) {
	g := new(guard)
	if _, _, err := g.user(context.Background()); err != nil {
		t.Error("open:", err)
	}
	g.closed.Store(true)
	if _, _, err := g.user(context.Background()); err != errClosed {
		t.Error("closed:", err)
	}
}
