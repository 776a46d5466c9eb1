package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Member is one etcd of the store, as the store lists it.
type Member struct {
	ID uint64
	// Name is empty until the member has started for the first time.
	Name string
	// Peer is the URL at which other members reach it, Clients those for clients.
	Peer    string
	Clients []string
	// Learner receives everything and has no vote yet.
	Learner bool
}

// MemberStatus is what a member says about itself.
type MemberStatus struct {
	ID uint64
	// Leader is the member that it follows; 0: none, and then it cannot write.
	Leader  uint64
	Version string
	Bytes   int64
	// Applied counts the changes that it has applied.
	Applied uint64
}

// Errors of changes to the members.
var (
	// ErrNoQuorum: the change would leave too few members that answer.
	ErrNoQuorum = errors.New("too few members of the store would be left")
	// ErrBehind: the learner has not received everything yet.
	ErrBehind = errors.New("the new member has not caught up")
	// ErrJoining: as many members are joining as may at the same time.
	ErrJoining = errors.New("too many members are joining the store")
)

// changePatience bounds one change of the members. Of two that are made at the same time,
// raft drops one without a word, and whoever made it would wait for ever. A change that ends
// with ErrUnavailable may have been made or not: list the members, then try again.
const changePatience = 3 * time.Second

// Members lists the members, from the leader's point of view.
func (e *Etcd) Members(ctx context.Context) ([]Member, error) {
	resp, err := e.client.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the store's members: %w", explainMember(err))
	}
	return membersOf(resp.Members), nil
}

// KnownMembers lists the members that the endpoint itself knows of, also while there is no
// leader.
func (e *Etcd) KnownMembers(ctx context.Context) ([]Member, error) {
	resp, err := e.client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("list the store's members: %w", explainMember(err))
	}
	return membersOf(resp.Members), nil
}

func membersOf(all []*etcdserverpb.Member) (out []Member) {
	for _, m := range all {
		one := Member{ID: m.ID, Name: m.Name, Clients: m.ClientURLs, Learner: m.IsLearner}
		if len(m.PeerURLs) > 0 {
			one.Peer = m.PeerURLs[0]
		}
		out = append(out, one)
	}
	return out
}

// AddLearner adds a member that has no vote yet, by the URL at which members will reach it.
func (e *Etcd) AddLearner(ctx context.Context, peer string) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	resp, err := e.client.MemberAddAsLearner(ctx, []string{peer})
	if err != nil {
		return nil, fmt.Errorf("add a member to the store: %w", explainMember(err))
	}
	return membersOf(resp.Members), nil
}

// Promote gives a learner its vote; ErrBehind while it has not caught up. It may be
// repeated.
func (e *Etcd) Promote(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	_, err := e.client.MemberPromote(ctx, id)
	if errors.Is(err, rpctypes.ErrMemberNotLearner) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give the new member its vote: %w", explainMember(err))
	}
	return nil
}

// RemoveMember removes a member; nil if there is none.
func (e *Etcd) RemoveMember(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	_, err := e.client.MemberRemove(ctx, id)
	if err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
		return fmt.Errorf("remove a member from the store: %w", explainMember(err))
	}
	return nil
}

// MoveMember changes the URL at which members reach one of them.
func (e *Etcd) MoveMember(ctx context.Context, id uint64, peer string) error {
	ctx, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	if _, err := e.client.MemberUpdate(ctx, id, []string{peer}); err != nil {
		return fmt.Errorf("change a member's address in the store: %w", explainMember(err))
	}
	return nil
}

// Ask asks the member at an endpoint how it is; without an endpoint, the one that we are
// connected to, which costs no connection.
func (e *Etcd) Ask(ctx context.Context, endpoint string, patience time.Duration) (MemberStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ask := e.status
	if endpoint != "" {
		ask = func(ctx context.Context) (*etcdserverpb.StatusResponse, error) {
			status, err := e.client.Status(ctx, endpoint)
			return (*etcdserverpb.StatusResponse)(status), err
		}
	}
	status, err := ask(ctx)
	if err != nil {
		return MemberStatus{}, explain(err)
	}
	return MemberStatus{ID: status.Header.MemberId, Leader: status.Leader, Version: status.Version, Bytes: status.DbSize, Applied: status.RaftAppliedIndex}, nil
}

func explainMember(err error) error {
	var known error
	switch {
	case errors.Is(err, rpctypes.ErrMemberNotEnoughStarted), errors.Is(err, rpctypes.ErrUnhealthy):
		known = ErrNoQuorum
	case errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
		known = ErrBehind
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		known = ErrJoining
	case errors.Is(err, rpctypes.ErrMemberNotFound):
		known = ErrNotFound
	default:
		return explain(err)
	}
	return fmt.Errorf("%w: %w", known, err)
}
