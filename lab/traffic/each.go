package traffic

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	_ "github.com/weft-mesh/weft/internal/firstthread"
)

// lookEvery is the pause between two looks for new and removed namespaces.
const lookEvery = 10 * time.Millisecond

// ServeEach serves in every network namespace in a folder from when it appears until it
// goes or ctx ends. The namespaces are named NAMESPACE_POD. One process answers for
// hundreds of pods: starting one for each would take longer than the mesh needs for
// all of them.
func ServeEach(ctx context.Context, dir string, c ServeConfig) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	type served struct {
		inode uint64
		stop  context.CancelFunc
	}
	have := map[string]served{}
	defer func() {
		for _, s := range have {
			s.stop()
		}
	}()
	for tick := time.NewTicker(lookEvery); ; {
		there := map[string]bool{}
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			inode := namespaceInode(path)
			if there[e.Name()] = inode != 0; inode == 0 || have[e.Name()].inode == inode {
				continue
			}
			if s, ok := have[e.Name()]; ok {
				s.stop()
				delete(have, e.Name())
			}
			own := c
			own.Self.Namespace, own.Self.Pod, _ = strings.Cut(e.Name(), "_")
			open, err := own.listenIn(ctx, path)
			if err != nil {
				continue // it is just coming or going
			}
			serving, stop := context.WithCancel(ctx)
			have[e.Name()] = served{inode, stop}
			wg.Go(func() { _ = own.serve(serving, open) }) // it ends with its sockets
		}
		for name, s := range have {
			if !there[name] {
				s.stop()
				delete(have, name)
			}
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-tick.C:
		}
	}
}

// namespaceInode tells namespaces of the same name apart; 0 if there is none.
func namespaceInode(path string) uint64 {
	var fs unix.Statfs_t
	var stat unix.Stat_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(path, &stat) != nil {
		return 0
	}
	return stat.Ino
}

// listenIn opens the sockets in a namespace.
func (c ServeConfig) listenIn(ctx context.Context, path string) (s sockets, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread stays locked and ends with the goroutine, so that nothing else
		// runs in the namespace.
		runtime.LockOSThread()
		ns, oerr := os.Open(path)
		if oerr != nil {
			err = oerr
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter %s: %w", path, err)
			return
		}
		s, err = c.listen(ctx)
	}()
	<-done
	return s, err
}
