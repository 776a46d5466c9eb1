package keeping

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-mesh/weft/store"
)

// A change is written after gather, together with those that follow it: a burst of new
// identities is one write for each shard a second. After a failure it is tried again after
// retry, and all are compared every look, because somebody may have changed a Secret.
const (
	gather = time.Second
	retry  = 2 * time.Second
	look   = 5 * time.Minute
)

// Keeper keeps the Secrets as they should be.
type Keeper struct {
	// Client returns a client of the cluster that is followed, or an error until it is known.
	Client    func(context.Context) (kubernetes.Interface, error)
	Namespace string
	// Mesh and ID are the cluster's in the mesh, and CA its authority's certificates.
	Mesh string
	ID   uint32
	CA   func() []byte
	// Store has what is to be kept.
	Store store.Store
	Log   *slog.Logger
	// Tell gets how the latest attempt ended.
	Tell func(error)

	mu    sync.Mutex // guards what follows
	have  map[string]map[string][]byte
	whole map[string]bool // prefixes that were read in full
	dirty map[string]bool // Secrets that have to be written
	wake  chan struct{}
}

// Run works until ctx ends; then it returns nil.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.Tell(nil) // another one tells by now
	k.have, k.whole, k.dirty, k.wake = map[string]map[string][]byte{}, map[string]bool{}, map[string]bool{}, make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	for _, prefix := range prefixes() {
		g.Go(func() error {
			return store.Persist(ctx, k.Log, "following what Kubernetes keeps", func(ctx context.Context) error {
				return store.Follow(ctx, k.Store, prefix, func(b store.Batch) error {
					k.apply(prefix, b)
					return nil
				})
			})
		})
	}
	g.Go(func() error { k.write(ctx); return nil })
	return g.Wait()
}

// apply takes in what has changed under a prefix.
func (k *Keeper) apply(prefix string, b store.Batch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if b.Complete {
		k.whole[prefix] = true
		for name, values := range k.have {
			for key := range values {
				if strings.HasPrefix(key, prefix) {
					delete(values, key)
					k.dirty[name] = true
				}
			}
		}
	}
	for _, e := range b.Events {
		for name, values := range k.have {
			if _, had := values[e.Key]; had {
				delete(values, e.Key)
				k.dirty[name] = true
			}
		}
		name := place(e.Key, e.Value)
		if e.Deleted || name == "" {
			continue
		}
		if k.have[name] == nil {
			k.have[name] = map[string][]byte{}
		}
		k.have[name][e.Key] = e.Value
		k.dirty[name] = true
	}
	if len(k.dirty) > 0 && len(k.whole) == len(prefixes()) {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// write writes what has changed, until ctx ends.
func (k *Keeper) write(ctx context.Context) {
	pause := look
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-k.wake:
			timer.Stop()
			if !sleep(ctx, gather) {
				return
			}
		case <-timer.C:
			if pause == look {
				k.mu.Lock()
				for name := range k.have {
					k.dirty[name] = true
				}
				k.mu.Unlock()
			}
		}
		err := k.flush(ctx)
		if ctx.Err() != nil {
			return
		}
		k.Tell(err)
		if pause = look; err != nil {
			pause = retry
		}
	}
}

// flush writes the Secrets that have changed, the one with the authority first.
func (k *Keeper) flush(ctx context.Context) error {
	k.mu.Lock()
	if len(k.whole) < len(prefixes()) {
		k.mu.Unlock()
		return nil
	}
	names := slices.Sorted(maps.Keys(k.dirty))
	k.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	client, err := k.Client(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		k.mu.Lock()
		values := maps.Clone(k.have[name])
		delete(k.dirty, name)
		k.mu.Unlock()
		if err := k.put(ctx, client, name, values); err != nil {
			k.mu.Lock()
			k.dirty[name] = true
			k.mu.Unlock()
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
