// Package trust decides whether a store is the one this node goes by.
//
// A store that was lost and rebuilt has withdrawn nothing: what its lists lack,
// it does not know. A node therefore stays with the store that it has its state
// from, by its generation, also across restarts, until an operator says that the
// rebuilt one holds what belongs there. Another cluster's store is none of that:
// nobody's word but the file's removal makes a node go by it. What is done with a
// list is package reflector's business.
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

	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/wire"
)

// Trust knows whose store this node goes by. Several goroutines may use it.
type Trust struct {
	own    string
	path   string
	source reflector.Source
	tell   func(path string, err error)
	log    *slog.Logger

	// mu guards what follows.
	mu      sync.Mutex
	kept    string // generation of the store we go by, "" if none yet
	holding bool   // the store we see is another one
	unsaved bool   // the file does not say so yet
	changed chan struct{}
}

// New makes the trust of a node in the cluster of this name. path is the file
// that remembers across restarts which store it goes by, as cluster/generation. If
// that is another cluster's, everything this machine has is from there, and New
// fails. A file that is damaged is put aside: the node goes by the store it finds.
// tell is told that the file cannot be written, and with nil that it can again.
func New(own, path string, source reflector.Source, tell func(path string, err error), log *slog.Logger) (*Trust, error) {
	kept, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read which store this node goes by: %w", err)
	}
	if err == nil && !strings.HasSuffix(string(kept), "\n") { // cut off
		d, err := statefile.PutAside(path)
		if err != nil {
			return nil, fmt.Errorf("read which store this node goes by: %w", err)
		}
		log.Error("a damaged file was put aside; this node goes by the store it finds", "file", path, "as", d.Aside)
		kept = nil
	}
	cluster, generation, ok := strings.Cut(strings.TrimSpace(string(kept)), "/")
	if !ok {
		cluster, generation = own, cluster // a file that names no cluster is of our own
	}
	if cluster != own {
		return nil, fmt.Errorf("the join bundle is of cluster %q, and this machine keeps what it has from cluster %q: to leave %[2]s for good, delete %[3]s and start the agent again", own, cluster, path)
	}
	return &Trust{own: own, path: path, source: source, tell: tell, log: log, kept: generation, changed: make(chan struct{})}, nil
}

// Holding is the generation of the lost store that the node still goes by, ""
// if there is no such thing; the channel is closed when it changes.
func (t *Trust) Holding() (generation string, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.holding {
		return "", t.changed
	}
	return t.kept, t.changed
}

// Judge asks the store whose it is. It returns nil if its lists may be believed.
func (t *Trust) Judge(ctx context.Context) error {
	kvs, _, err := t.source.List(ctx, wire.ClusterKey)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		if kv.Key != wire.ClusterKey {
			continue
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
	return errors.New("the store holds no cluster yet; keeping what is known")
}

// admit judges the generation: the first one is believed, another only if an
// operator has released its nodes to it.
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
		return fmt.Errorf("held: the store was rebuilt, and this node keeps what it has from the one before: when everything is in it again, `weft node release` lets nodes go by it")
	}
	t.kept, t.unsaved = c.Generation, true
	t.saveLocked()
	t.holdLocked(false)
	return nil
}

// saveLocked writes the file if it is behind. A disk that takes nothing keeps no
// node from its store: what the file is for is the next life of the agent.
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
		t.log.Warn("the store was rebuilt; keeping everything as it is until `weft node release`", "generation", t.kept)
	} else {
		t.log.Info("going by the rebuilt store", "generation", t.kept)
	}
	t.holding = holding
	close(t.changed)
	t.changed = make(chan struct{})
}
