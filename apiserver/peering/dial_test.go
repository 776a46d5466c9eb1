package peering_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"testing"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/store"
)

// A folder over the peer's limit is still read, so that withdrawals are noticed; a
// folder over the limit for reading is not.
func TestFolderOverTheLimitIsRead(t *testing.T) {
	west := newSite(t, "west", 2)
	pair, err := west.ca.Issue(authority.Request{User: authority.Root, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	const folder, size = "folder/", 100 // one that the exporter does not sweep
	for n := range 20 {
		key := fmt.Sprintf("%s%02d", folder, n)
		west.put(key, make([]byte, size-len(key)))
	}
	for _, c := range []struct {
		limit mirror.Limit
		want  error
	}{
		{mirror.Limit{Entries: 10, Bytes: 10 * size}, nil},
		{mirror.Limit{Entries: 9, Bytes: 10 * size}, store.ErrTooMany},
		{mirror.Limit{Entries: 10, Bytes: 9 * size}, store.ErrTooMuch},
	} {
		src, err := peering.Etcd{Limit: c.limit}.Open([]string{west.endpoint()}, &tls.Config{RootCAs: west.ca.Pool(), Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		if kvs, _, err := src.List(t.Context(), folder); !errors.Is(err, c.want) || err == nil && len(kvs) != 20 {
			t.Errorf("%+v: listed %d, %v", c.limit, len(kvs), err)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
}
