package apiserver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/wire"
)

// A node that keeps what it has from a lost store is shown, and released by the
// operator's word, which a restart does not take back.
func TestNodesAreReleasedToARebuiltStore(t *testing.T) {
	conf := config(t)
	p := start(t, conf)
	ctx, admin := t.Context(), p.admin()
	n1 := p.agent(join(t, admin, 1))
	released := func() bool {
		kv, err := p.srv.store.Get(ctx, wire.ClusterKey)
		if err != nil {
			t.Fatal(err)
		}
		c, err := wire.Unmarshal[wire.Cluster](kv.Value)
		return err == nil && c.Released && c.Generation == p.srv.cluster.Generation
	}
	if _, err := admin.ReleaseNodes(ctx); err == nil || !strings.Contains(err.Error(), "no store of cluster east was lost") || released() {
		t.Errorf("nothing was lost: %v, released %v", err, released())
	}
	if err := n1.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1", Holding: "lost"}); err != nil {
		t.Fatal(err)
	}
	held := func() error {
		status, err := admin.Status(ctx)
		if err != nil {
			return err
		}
		if got := concernsOf(status, "StoreRebuilt"); !strings.HasPrefix(got, "held: n1 ") || !strings.Contains(got, "weft node release") {
			return fmt.Errorf("concerns %q", got)
		}
		return nil
	}
	eventually(t, "hold is reported", held)
	result, err := admin.ReleaseNodes(ctx)
	if err != nil || !slices.Equal(result.Nodes, []string{"n1"}) {
		t.Errorf("released %+v, %v", result, err)
	}
	if !released() {
		t.Error("the store does not say so")
	}
	if err := n1.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "hold ends", func() error {
		if held() == nil {
			return errors.New("still held")
		}
		return nil
	})
	conf.Listen, conf.EtcdListen = strings.TrimPrefix(p.url, "https://"), p.srv.etcd.Addr()
	p.stop()
	p = start(t, conf)
	if !released() {
		t.Error("forgotten by a restart")
	}
}
