package program

import (
	"errors"

	"github.com/weft-mesh/weft/bpf"
)

// join writes members, those that are new or have changed.
func (b *balancer) join(own *behind, id uint32, members map[bpf.MemberKey]bpf.Member) (changed int, err error) {
	due := map[bpf.MemberKey]bpf.Member{}
	for k, m := range members {
		k.Service = id
		delete(own.found, k)
		if old, ok := own.members[k]; !ok || old != m {
			due[k] = m
		}
	}
	batched := len(due) >= fewRows && b.members.UpdateBatch(due) == nil
	full := false
	var fresh []bpf.MemberKey
	for k, m := range due {
		old, had := own.members[k]
		if had = had && old != unsureMember; !had {
			fresh = append(fresh, k)
		}
		if full && !had { // no use to try: there may be very many
			continue
		}
		if !batched {
			if e := b.members.Update(k, m); e != nil {
				if err = e; len(due) < fewRows {
					return changed, err
				}
				full = full || errors.Is(e, bpf.ErrFull)
				if m = unsureMember; had { // the batch may have come to it
					m = changedMember
				}
				enter(&own.members, k, m)
				continue
			}
		}
		enter(&own.members, k, m)
		changed++
	}
	if !full {
		return changed, err
	}
	for _, k := range fresh {
		enter(&own.members, k, unsureMember)
	}
	var stale []bpf.MemberKey // of an attempt that wanted others
	for k, m := range own.members {
		bare := k
		bare.Service = 0
		if _, wanted := members[bare]; m == unsureMember && !wanted {
			stale = append(stale, k)
		}
	}
	if n, failed := b.part(own, stale); n > 0 && failed == nil { // there is room now
		n, err = b.join(own, id, members)
		changed += n
	}
	return changed, err
}

// fewRows is from how many rows on members and slots of one service are written as a batch.
// A new agent writes those of thousands of services.
const fewRows = 4

// unsureMember is a member that the kernel may have, and to which nothing led yet; changedMember
// one that it has, in one of two states. Nobody wants them like this.
var unsureMember, changedMember = bpf.Member{Terminating: 255}, bpf.Member{Terminating: 254}

// part removes members.
func (b *balancer) part(own *behind, gone []bpf.MemberKey) (changed int, err error) {
	return removeAll(b.members, gone, func(k bpf.MemberKey) {
		led := own.members[k] != unsureMember
		delete(own.members, k)
		delete(own.found, k)
		if led {
			b.left(k.Addr)
		}
	})
}
