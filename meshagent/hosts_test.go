package meshagent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// hostsBench is a hosts file that is kept, in a bubble.
type hostsBench struct {
	t      *testing.T
	hosts  *hosts
	mu     sync.Mutex
	writes int // since told
	err    error
}

// told says how often the file was written since the last time, and how it went last.
func (b *hostsBench) told() (writes int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	writes, b.writes = b.writes, 0
	return writes, b.err
}

func runHosts(t *testing.T, services int, each func(*hostsBench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &hostsBench{t: t}
		listed := make(chan struct{})
		close(listed)
		b.hosts = &hosts{
			path: filepath.Join(t.TempDir(), "run", "hosts"), own: "east", tables: tables.New(), listed: listed,
			tell: func(_ string, err error) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.writes, b.err = b.writes+1, err
			},
		}
		for i := range services {
			b.put("east", "shop", fmt.Sprint("s", i), i)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.hosts.Run(ctx) }()
		synctest.Wait()
		each(b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// put writes a service with an address of this number; a negative one deletes it.
func (b *hostsBench) put(cluster, ns, name string, i int) {
	row := &tables.Service{Cluster: cluster, Service: service.Service{Namespace: ns, Name: name}}
	txn := b.hosts.tables.DB.WriteTxn(b.hosts.tables.Services)
	if i >= 0 {
		row.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 101, byte(i >> 8), byte(i)})}
		tables.Put(txn, b.hosts.tables.Services, row)
	} else {
		tables.Drop(txn, b.hosts.tables.Services, row)
	}
	txn.Commit()
}

// want compares the file's lines beyond localhost, and how often it was written since.
func (b *hostsBench) want(when string, writes int, lines ...string) {
	b.t.Helper()
	synctest.Wait()
	text, err := os.ReadFile(b.hosts.path)
	if err != nil {
		b.t.Fatal(err)
	}
	want := strings.Join(append([]string{"127.0.0.1 localhost", "::1 localhost ip6-localhost"}, lines...), "\n") + "\n"
	if string(text) != want {
		b.t.Errorf("%s:\n%s\nwant\n%s", when, text, want)
	}
	if got, _ := b.told(); got != writes {
		b.t.Errorf("%s: written %d times, want %d", when, got, writes)
	}
}

// The file follows the names of the own cluster, and is not written for anything else.
func TestTheHostsFileFollowsNames(t *testing.T) {
	runHosts(t, 0, func(b *hostsBench) {
		b.want("no services", 1)
		b.put("east", "shop", "web", 2)
		web := "10.101.0.2 web.shop.svc.cluster.local web.shop.svc web.shop"
		b.want("one", 1, web)
		b.put("west", "shop", "web", 3)
		b.put("east", "shop", "web", 2)
		b.want("a peer's, and one that is as before", 0, web)
		b.put("east", "default", "api", 1)
		b.want("in namespace default", 1, "10.101.0.1 api.default.svc.cluster.local api.default.svc api.default api", web)
		b.put("east", "default", "api", -1)
		b.want("deleted", 1, web)
	})
}

// However many names change, a large file is not written more often than its size allows;
// the first is there at once, the others after the pause.
func TestALargeHostsFileRests(t *testing.T) {
	const services = 2000
	runHosts(t, services, func(b *hostsBench) {
		has := func(name string) bool {
			text, err := os.ReadFile(b.hosts.path)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(string(text), " "+name+".shop.svc.cluster.local ")
		}
		if writes, _ := b.told(); !has("s1999") || writes != 1 {
			t.Fatalf("at the start: written %d times, the last name is there: %v", writes, has("s1999"))
		}
		time.Sleep(time.Second)
		for i := range 100 {
			b.put("east", "shop", fmt.Sprint("new", i), services+i)
			synctest.Wait()
			if !has("new0") || has("new1") {
				t.Fatalf("after change %d: the first name is there: %v, the second: %v", i, has("new0"), has("new1"))
			}
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if writes, _ := b.told(); !has("new99") || writes != 2 {
			t.Errorf("written %d times after 101 changes, the last name is there: %v", writes, has("new99"))
		}
	})
}

// What cannot be written is reported, and written once it can be.
func TestAHostsFileThatCannotBeWritten(t *testing.T) {
	runHosts(t, 0, func(b *hostsBench) {
		folder := filepath.Dir(b.hosts.path)
		aside := folder + ".aside"
		if err := errors.Join(os.Rename(folder, aside), os.WriteFile(folder, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		b.put("east", "shop", "web", 2)
		synctest.Wait()
		if _, err := b.told(); err == nil {
			t.Fatal("a file below a file was written")
		}
		if err := errors.Join(os.Remove(folder), os.Rename(aside, folder)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(hostsRetry)
		b.want("after a second", 1, "10.101.0.2 web.shop.svc.cluster.local web.shop.svc web.shop")
		if _, err := b.told(); err != nil {
			t.Error(err)
		}
	})
}
