package apiserver

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// What Cilium 1.20's KVStoreMesh does with a cluster's certificate, request by request: a
// range over the heartbeat as a prefix, the configuration, the canaries that it announces,
// and of each kind of state a list followed by a watch. One that is refused ends the
// connection.
func TestKVStoreMeshReadsUs(t *testing.T) {
	p := start(t, config(t))
	invite, err := p.admin().Invite(t.Context(), "west")
	if err != nil {
		t.Fatal(err)
	}
	reader := dial(t, invite.EtcdEndpoints, invite.CA, invite.Cert, invite.Key).Client()

	list := func(prefix string) (keys []string) {
		t.Helper()
		got, err := reader.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend), clientv3.WithLimit(256))
		if err != nil {
			t.Fatalf("list %s: %v", prefix, err)
		}
		for _, kv := range got.Kvs {
			keys = append(keys, string(kv.Key))
		}
		slices.Sort(keys)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		watched, open := <-reader.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(got.Header.Revision+1), clientv3.WithCreatedNotify())
		if err := watched.Err(); err != nil || !open || !watched.Created {
			t.Errorf("watch %s: %+v, %v", prefix, watched, err)
		}
		return keys
	}
	const canaries = "cilium/synced/east/cilium/state/"
	eventually(t, "the export is complete", func() error {
		if got := list("cilium/.heartbeat"); !slices.Equal(got, []string{"cilium/.heartbeat"}) {
			return fmt.Errorf("heartbeat %q", got)
		}
		if got := list(canaries); !slices.Equal(got, []string{
			canaries + "endpointslices/v1", canaries + "identities/v1", canaries + "ip/v1",
			canaries + "nodes/v1", canaries + "serviceexports/v1", canaries + "services/v1",
		}) {
			return fmt.Errorf("canaries %q", got)
		}
		return nil
	})
	got, err := reader.Get(t.Context(), "cilium/cluster-config/east")
	const introduced = `{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}`
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != introduced {
		t.Errorf("configuration %v, %v", got, err)
	}
	for _, prefix := range []string{
		"cilium/state/nodes/v1/east/", "cilium/state/services/v1/east/", "cilium/state/endpointslices/v1/east/",
		"cilium/state/serviceexports/v1/east/", "cilium/state/identities/v1/", "cilium/state/ip/v1/",
	} {
		list(prefix)
	}

	// That is granted, key by key, and no range beyond it.
	role, err := p.srv.store.(*store.Etcd).Client().RoleGet(t.Context(), authority.RemoteUser("west", 0))
	if err != nil {
		t.Fatal(err)
	}
	var granted []string
	for _, perm := range role.Perm {
		granted = append(granted, fmt.Sprintf("%s %s %s", perm.PermType, perm.Key, perm.RangeEnd))
	}
	slices.Sort(granted)
	if diff := cmp.Diff([]string{
		"READ cilium/.heartbeat cilium/.heartbeau",
		"READ cilium/cluster-config/east ",
		"READ cilium/state/ cilium/state0",
		"READ cilium/synced/east/ cilium/synced/east0",
		"READ weft/export/ weft/export0",
		"READ " + wire.JoinedPrefix("west") + " weft/joined/west0",
	}, granted); diff != "" {
		t.Errorf("granted (-want +got):\n%s", diff)
	}
}
