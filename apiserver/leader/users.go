package leader

import (
	"context"

	"github.com/weft-mesh/weft/store"
)

// Users returns users that are changed only while the fence of s lets writes pass. etcd
// makes no change of a user conditional, so this asks right before: a server that is
// suspended in between changes a user late. It sets what a peer was entitled to then, or
// removes a user that is never wanted again.
func Users(s store.Store, u store.Users) store.Users { return users{s, u} }

type users struct {
	store store.Store
	users store.Users
}

// SetUser implements store.Users.
func (u users) SetUser(ctx context.Context, user store.User) error {
	if err := u.leads(ctx); err != nil {
		return err
	}
	return u.users.SetUser(ctx, user)
}

// RemoveUser implements store.Users.
func (u users) RemoveUser(ctx context.Context, name string) error {
	if err := u.leads(ctx); err != nil {
		return err
	}
	return u.users.RemoveUser(ctx, name)
}

// leads makes a transaction that writes nothing.
func (u users) leads(ctx context.Context) error {
	_, _, err := u.store.Commit(ctx, store.Txn{})
	return err
}
