package endpoints

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A machine that has lost its disk gives its pods addresses as if they were new, also those
// that others of them had.
func TestPodsExchangeTheirAddresses(t *testing.T) {
	for _, to := range [][]string{{"10.1.1.3", "10.1.1.2"}, {"10.1.1.3", "10.1.1.4", "10.1.1.2"}, {"10.1.1.3", "10.1.1.4", "10.1.1.9"}, {"10.1.1.3"}} {
		t.Run(fmt.Sprint(to), func(t *testing.T) {
			run(t, func(e *east) {
				var ops []store.Op
				var want []string
				for i := range 3 {
					pod := fmt.Sprint("web-", i)
					e.pod(pod, "n1", "web")
					e.claim("n1", pod, fmt.Sprint("10.1.1.", i+2), true)
					if i >= len(to) { // not started yet, after the reboot
						ops = append(ops, store.Delete(wire.NodeEndpointKey("n1", "shop", pod)))
						continue
					}
					ops = append(ops, store.Put(wire.NodeEndpointKey("n1", "shop", pod), wire.Marshal(wire.EndpointState{Namespace: "shop", Pod: pod, IP: netip.MustParseAddr(to[i]), Ready: true})))
					want = append(want, fmt.Sprintf("%s on n1 (172.16.1.1) at %s: web, ready", pod, to[i]))
				}
				e.write(append(ops, store.Put(wire.NodeSyncedKey("n1"), []byte("start 2")))...)
				e.want("exchanged", e.endpoints(), strings.Join(want, "\n"))
				if all := e.Status().Standing; len(all) != 0 {
					t.Errorf("refused: %v", all)
				}
			})
		})
	}
}
