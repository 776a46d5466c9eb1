package apiserver

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// asked counts the requests that read keys.
type asked struct {
	*storetest.Etcd
	n int
}

func (a *asked) Get(ctx context.Context, key string) (store.KV, error) {
	a.n++
	return a.Etcd.Get(ctx, key)
}

func (a *asked) GetMany(ctx context.Context, keys ...string) ([]store.KV, error) {
	a.n++
	return a.Etcd.GetMany(ctx, keys...)
}

// Every second, the server looks at what all peers say about their nodes.
func TestDeadNodesOfAllPeersAreOneRequest(t *testing.T) {
	for _, n := range []int{10, 100} {
		st := &asked{Etcd: storetest.NewEtcd()}
		s := &server{foundation: &foundation{store: st}}
		since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		peers := make([]api.PeerStatus, n)
		for i := range peers {
			peers[i].Name = fmt.Sprint("p", i)
		}
		for i, value := range map[int][]byte{1: wire.Marshal(wire.PeerLiveness{Dead: map[string]time.Time{"n2": since, "n1": since}}), 2: []byte("{")} {
			if err := st.Put(t.Context(), wire.PeerLivenessKey(peers[i].Name), value); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.addDeadNodes(t.Context(), peers); err != nil || st.n != 1 {
			t.Errorf("%d peers: %d requests, %v", n, st.n, err)
		}
		for i, p := range peers {
			if want := map[bool]string{true: "[n1 n2]", false: "[]"}[i == 1]; fmt.Sprint(p.DeadNodes) != want {
				t.Errorf("dead nodes of %s: %v", p.Name, p.DeadNodes)
			}
		}
	}
}
