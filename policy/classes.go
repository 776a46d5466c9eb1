package policy

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/identity"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// peerIndex finds the peers that an identity matches without trying each.
//
// A label peer is filed under its most selective equality; an identity looks under each
// of its labels and checks what it finds there in full.
type peerIndex struct {
	peers   []peer
	byLabel map[labelValue][]uint32
	cidrs   []uint32
	rest    []uint32 // peers without an equality to file them under
}

type labelValue struct{ key, value string }

// add files a peer and returns its number.
func (x *peerIndex) add(p peer) uint32 {
	id := uint32(len(x.peers))
	x.peers = append(x.peers, p)
	if p.kind == peerCIDR && p.mesh {
		x.rest = append(x.rest, id)
		return id
	}
	if p.kind == peerCIDR {
		x.cidrs = append(x.cidrs, id)
		return id
	}
	keys := telling(p.selector)
	if keys == nil {
		x.rest = append(x.rest, id)
	}
	for _, k := range keys {
		if x.byLabel == nil {
			x.byLabel = map[labelValue][]uint32{}
		}
		x.byLabel[k] = append(x.byLabel[k], id)
	}
	return id
}

// telling chooses the equality to file a selector under. Namespace and cluster come
// last, because nearly every selector has them.
func telling(s selector) []labelValue {
	var best []labelValue
	rank := 0
	for _, r := range s {
		var keys []labelValue
		mine := 3
		switch {
		case r.source == identity.SourceReserved:
			// Words that are not a label cannot be filed under one.
			if _, err := identity.ParseNumber(r.key); err == nil && r.op == metav1.LabelSelectorOpExists && !strings.HasPrefix(r.key, identity.World.String()) {
				keys = []labelValue{{r.key, ""}}
			}
		case r.op == metav1.LabelSelectorOpIn:
			for _, v := range r.values {
				keys = append(keys, labelValue{r.key, v})
			}
		}
		switch r.key {
		case identity.KeyNamespace:
			mine = 2
		case identity.KeyCluster:
			mine = 1
		}
		if keys != nil && mine > rank {
			best, rank = keys, mine
		}
	}
	return best
}

// find appends the numbers of the peers that the identity matches to buf, ascending.
func (x *peerIndex) find(n identity.Number, labels identity.Labels, buf []uint32) []uint32 {
	ask := func(ids []uint32) {
		for _, id := range ids {
			if x.peers[id].matches(n, labels) {
				buf = append(buf, id)
			}
		}
	}
	isCIDR := false
	for _, l := range labels {
		ask(x.byLabel[labelValue{l.Key, l.Value}])
		isCIDR = isCIDR || l.Source == identity.SourceCIDR
	}
	ask(x.rest)
	if isCIDR || n.Reserved() {
		ask(x.cidrs)
	}
	slices.Sort(buf)
	return slices.Compact(buf)
}

// signature encodes a set of peers as a map key.
func signature(ids []uint32) string {
	out := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		out = binary.BigEndian.AppendUint32(out, id)
	}
	return string(out)
}

func readSignature(sig string) []uint32 {
	var out []uint32
	for b := []byte(sig); len(b) >= 4; b = b[4:] {
		out = append(out, binary.BigEndian.Uint32(b))
	}
	return out
}
