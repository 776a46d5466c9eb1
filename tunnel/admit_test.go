package tunnel_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/tunnel"
)

// wanted reads "name key0 key1 prefix…"; a key is one letter, "-" for none.
func wanted(line string) tunnel.Peer {
	f := strings.Fields(line)
	cluster, node, _ := strings.Cut(f[0], "/")
	p := tunnel.Peer{Cluster: cluster, Node: node}
	for i := range p.Keys {
		if f[1+i] != "-" {
			p.Keys[i] = tunnel.Key{f[1+i][0]}
		}
	}
	for _, prefix := range f[3:] {
		p.Allowed = append(p.Allowed, netip.MustParsePrefix(prefix))
	}
	return p
}

func TestAdmit(t *testing.T) {
	for name, c := range map[string]struct {
		want, held []string
		refused    []string // name: part of the reason
	}{
		"peers that do not meet": {
			want: []string{"w/n1 a b 10.2.1.0/24", "w/n2 c d 10.2.2.0/24"},
		},
		"an address inside the node's own prefix": {
			want: []string{"w/n1 a b 10.2.1.0/24 10.2.1.1/32", "w/n2 c d 10.2.2.0/24"},
		},
		"neighbours in address": {
			want: []string{"w/n1 a b 10.2.0.0/25", "w/n2 c d 10.2.0.128/25"},
		},
		"one key, both new": {
			want:    []string{"w/n1 a b 10.2.1.0/24", "w/n2 a d 10.2.2.0/24"},
			refused: []string{"w/n1: same public key", "w/n2: same public key"},
		},
		"one key on different lanes": {
			want:    []string{"w/n1 a b 10.2.1.0/24", "w/n2 c a 10.2.2.0/24"},
			refused: []string{"w/n1: same public key", "w/n2: same public key"},
		},
		"one key, the first stays": {
			want:    []string{"w/n1 a b 10.2.1.0/24", "w/n2 a d 10.2.2.0/24"},
			held:    []string{"w/n1 a b 10.2.1.0/24"},
			refused: []string{"w/n2: as w/n1"},
		},
		"overlap, both new": {
			want:    []string{"w/n1 a b 10.2.0.0/16", "w/n2 c d 10.2.2.0/24"},
			refused: []string{"w/n1: same addresses", "w/n2: same addresses"},
		},
		"overlap, the first stays": {
			want:    []string{"e/n9 c d 10.2.2.0/24", "w/n1 a b 10.2.2.0/25"},
			held:    []string{"w/n1 a b 10.2.2.0/25"},
			refused: []string{"e/n9: as w/n1"},
		},
		"overlap, the first stays although it rotates": {
			want:    []string{"e/n9 c d 10.2.2.0/24", "w/n1 a x 10.2.2.0/25"},
			held:    []string{"w/n1 a b 10.2.2.0/25"},
			refused: []string{"e/n9: as w/n1"},
		},
		"one that grows into another is refused": {
			want:    []string{"w/n1 a b 10.2.0.0/16", "w/n2 c d 10.2.2.0/24"},
			held:    []string{"w/n1 a b 10.2.1.0/24", "w/n2 c d 10.2.2.0/24"},
			refused: []string{"w/n1: as w/n2"},
		},
		"the same prefix under three names": {
			want:    []string{"w/n1 a b 10.2.0.0/16", "w/n2 c d 10.2.0.0/16", "w/n3 e f 10.2.0.0/16"},
			refused: []string{"w/n1: same addresses", "w/n2: same addresses", "w/n3: same addresses"},
		},
		"one after a nested pair": {
			want:    []string{"w/n1 a b 10.0.0.0/8 10.2.0.0/24", "w/n2 c d 10.3.0.0/24"},
			refused: []string{"w/n1: w/n2", "w/n2: w/n1"},
		},
		"wanted twice": {
			want:    []string{"w/n1 a b 10.2.1.0/24", "w/n1 a b 10.2.1.0/24"},
			refused: []string{"w/n1: twice"},
		},
		"without addresses": {
			want:    []string{"w/n1 a b"},
			refused: []string{"w/n1: no addresses"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var want, held []tunnel.Peer
			for _, line := range c.want {
				want = append(want, wanted(line))
			}
			for _, line := range c.held {
				held = append(held, wanted(line))
			}
			admitted, refused := tunnel.Admit(want, held)
			if len(admitted)+len(refused) != len(want) || len(refused) != len(c.refused) {
				t.Fatalf("admitted %v, refused %v, want refused %v", admitted, refused, c.refused)
			}
			for i, r := range refused {
				who, why, _ := strings.Cut(c.refused[i], ": ")
				if r.Cluster+"/"+r.Node != who || !strings.Contains(r.Reason, why) {
					t.Errorf("refused %+v, want %s", r, c.refused[i])
				}
			}
		})
	}
}

// Whatever is wanted, no two admitted peers conflict, and a peer without a conflict is
// admitted.
func TestAdmitAgainstEveryPair(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	meet := func(a, b tunnel.Peer) bool {
		for _, x := range a.Keys {
			if !x.IsZero() && slices.Contains(b.Keys[:], x) {
				return true
			}
		}
		for _, x := range a.Allowed {
			if slices.ContainsFunc(b.Allowed, x.Overlaps) {
				return true
			}
		}
		return false
	}
	for round := range 500 {
		var want []tunnel.Peer
		for i := range 12 {
			p := tunnel.Peer{Cluster: "w", Node: fmt.Sprint(i)}
			p.Keys = [2]tunnel.Key{{1, byte(random.IntN(60) + 1)}, {2, byte(random.IntN(60) + 1)}}
			for range 1 + random.IntN(2) {
				bits := 20 + random.IntN(13)
				p.Allowed = append(p.Allowed, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(random.IntN(64)), byte(random.IntN(256))}), bits))
			}
			want = append(want, p)
		}
		admitted, refused := tunnel.Admit(want, nil)
		for _, a := range admitted {
			for _, b := range admitted {
				if a.Name() != b.Name() && meet(a, b) {
					t.Fatalf("round %d: %v and %v are both admitted", round, a, b)
				}
			}
		}
		for _, r := range refused {
			lonely := true
			for _, p := range want {
				lonely = lonely && (p.Node == r.Node || !meet(p, want[slices.IndexFunc(want, func(q tunnel.Peer) bool { return q.Node == r.Node })]))
			}
			if lonely {
				t.Fatalf("round %d: %+v meets nobody", round, r)
			}
		}
	}
}
