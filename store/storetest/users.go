package storetest

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/store"
)

// Users is the in-memory twin of a store's users. The zero value has none.
type Users struct {
	mu    sync.Mutex // guards what follows
	users map[string]store.User
}

var _ store.Users = (*Users)(nil)

// SetUser implements store.Users.
func (u *Users) SetUser(_ context.Context, user store.User) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users == nil {
		u.users = map[string]store.User{}
	}
	u.users[user.Name] = user
	return nil
}

// RemoveUser implements store.Users.
func (u *Users) RemoveUser(_ context.Context, name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.users, name)
	return nil
}

// User returns a user, and false if there is none.
func (u *Users) User(name string) (store.User, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	user, ok := u.users[name]
	return user, ok
}

// Names returns the names of all users, sorted.
func (u *Users) Names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Sorted(maps.Keys(u.users))
}

func (u *Users) all() map[string]store.User {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.users)
}

func (u *Users) set(users map[string]store.User) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.users = maps.Clone(users)
}
