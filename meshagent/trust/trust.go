// Package trust decides whether this node may believe what its store says.
//
// A store that was lost and rebuilt is missing entries that nobody withdrew. The node
// therefore remembers, across restarts, the generation of the store its state came
// from, and ignores any other generation until an operator releases the node to it.
// Another cluster's store is never accepted: an operator has to delete the file first.
// What happens to a list that is believed is up to package reflector.
package trust

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Trust knows which store this node accepts. Several goroutines may use it.
type Trust struct {
	own   string
	path  string
	store store.Store
	tell  func(path string, err error)
	log   *slog.Logger

	// mu guards what follows.
	mu      sync.Mutex
	kept    string // generation of the accepted store, "" if none yet
	holding bool   // the store we see has another generation
	unsaved bool   // kept is not in the file yet
	changed chan struct{}
}

// New returns the Trust of a node in cluster own. path is the file that remembers the
// accepted store as cluster/generation. If it names another cluster, this machine's
// state comes from there, and New fails. If it is damaged, New puts it aside and the
// node accepts the store it finds. tell is called with the error when the file cannot
// be written, and with nil when it can be again.
func New(own, path string, s store.Store, tell func(path string, err error), log *slog.Logger) (*Trust, error) {
	kept, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read which store this node accepts: %w", err)
	}
	if err == nil && !strings.HasSuffix(string(kept), "\n") { // cut off
		d, err := statefile.PutAside(path)
		if err != nil {
			return nil, fmt.Errorf("read which store this node accepts: %w", err)
		}
		log.Error("a damaged file was put aside; this node accepts the store it finds", "file", path, "as", d.Aside)
		kept = nil
	}
	cluster, generation, ok := strings.Cut(strings.TrimSpace(string(kept)), "/")
	if !ok {
		cluster, generation = own, cluster // without a cluster, it is our own
	}
	if cluster != own {
		return nil, fmt.Errorf("the join bundle is for cluster %q, but this machine's state comes from cluster %q: to leave %[2]s for good, delete %[3]s and start the agent again", own, cluster, path)
	}
	return &Trust{own: own, path: path, store: s, tell: tell, log: log, kept: generation, changed: make(chan struct{})}, nil
}

// Incomplete returns those of some peers of whose exports the store did not have a complete
// copy as of a revision. An API server raises a peer's canaries, all at once, when it has
// read everything, and restoring a backup takes them away. About a cluster that is not a
// peer, the store is right: nobody copies it.
func (t *Trust) Incomplete(ctx context.Context, peers []string, revision int64) (out []string, err error) {
	var keys []string
	for _, peer := range peers {
		keys = append(keys, wire.PeerKey(peer), wire.Nodes.CacheSyncedKey(peer))
	}
	kvs, err := t.store.GetMany(ctx, keys...)
	if err != nil {
		return nil, err
	}
	for i, peer := range peers {
		record, canary := kvs[2*i], kvs[2*i+1]
		if canary.Modified > 0 && canary.Modified <= revision || record.Modified == 0 {
			continue
		}
		// A record that cannot be read is no reason to forget a peer.
		if p, err := wire.Unmarshal[wire.Peer](record.Value); err != nil || p.Connected {
			out = append(out, peer)
		}
	}
	return out, nil
}

// Holding is the generation of the lost store whose state this node keeps, or "" if
// the store it sees is the accepted one. The channel is closed when this changes.
func (t *Trust) Holding() (generation string, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.holding {
		return "", t.changed
	}
	return t.kept, t.changed
}

// Judge asks the store for its cluster and generation, and returns nil if its lists
// may be believed.
func (t *Trust) Judge(ctx context.Context) error {
	kv, err := t.store.Get(ctx, wire.ClusterKey)
	if errors.Is(err, store.ErrNotFound) {
		return errors.New("the store has no cluster record yet; keeping the last known state")
	}
	if err != nil {
		return err
	}
	c, err := wire.Unmarshal[wire.Cluster](kv.Value)
	if err != nil {
		return err
	}
	if c.Name != t.own {
		return fmt.Errorf("the store belongs to cluster %q, this node to %q: check the etcd endpoints of the join bundle", c.Name, t.own)
	}
	return t.admit(c)
}

// admit judges the generation. The first one is accepted; another is accepted only
// once an operator has released the nodes to it.
func (t *Trust) admit(c wire.Cluster) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Generation == t.kept || c.Generation == "" {
		t.holdLocked(false)
		t.saveLocked()
		return nil
	}
	if t.kept != "" && !c.Released {
		t.holdLocked(true)
		return errors.New("held: the store was rebuilt, and this node keeps its state from the old one; once everything is in the store again, run `weft node release`")
	}
	t.kept, t.unsaved = c.Generation, true
	t.saveLocked()
	t.holdLocked(false)
	return nil
}

// saveLocked writes the file if it is out of date. A full disk is no reason to ignore
// the store: only the agent's next start needs the file.
func (t *Trust) saveLocked() {
	if !t.unsaved {
		return
	}
	err := statefile.Write(t.path, []byte(t.own+"/"+t.kept+"\n"))
	t.unsaved = err != nil
	t.tell(t.path, err)
}

func (t *Trust) holdLocked(holding bool) {
	if holding == t.holding {
		return
	}
	if holding {
		t.log.Warn("the store was rebuilt; keeping the last known state until `weft node release`", "generation", t.kept)
	} else {
		t.log.Info("accepted the rebuilt store", "generation", t.kept)
	}
	t.holding = holding
	close(t.changed)
	t.changed = make(chan struct{})
}
