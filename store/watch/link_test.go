package watch_test

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weft-mesh/weft/store/watch"
)

// However long a store has been away, its clients try it again every few seconds: gRPC
// alone would wait up to two minutes after the store is back.
func TestAStoreThatWasAwayForLongIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last atomic.Int64
		link := new(watch.Link)
		conn, err := grpc.NewClient("passthrough:///store", append(link.DialOptions(),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
				last.Store(time.Now().UnixNano())
				return nil, syscall.ECONNREFUSED
			}))...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for range 4 * 60 * 60 { // four hours
			conn.Connect() // what every call does
			time.Sleep(time.Second)
			synctest.Wait()
			if ago := time.Since(time.Unix(0, last.Load())); ago > 6*time.Second {
				t.Fatalf("the store was last tried %v ago", ago)
			}
		}
	})
}
