package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// User says what a user may read and write. An entry that ends in "/" covers all keys
// below it, one that ends in "*" all keys that begin with what precedes the "*", and
// any other a single key. Users have no password: the common name of their client
// certificate identifies them.
type User struct {
	Name        string
	Read, Write []string
}

// Users is the part of a store that manages its users. Each has a role of the same
// name.
type Users interface {
	// SetUser creates a user or updates its rights, so that it has exactly these.
	SetUser(ctx context.Context, u User) error
	// RemoveUser removes a user and its rights; nil if there is none.
	RemoveUser(ctx context.Context, name string) error
}

var _ Users = (*Etcd)(nil)

// EnableAuth creates the user root and turns on authentication. From then on every
// access needs a right. It may be repeated.
func (e *Etcd) EnableAuth(ctx context.Context) error {
	status, err := e.client.AuthStatus(ctx)
	if err == nil && status.Enabled {
		return nil
	}
	for _, step := range []func() error{
		func() error { _, err := e.client.RoleAdd(ctx, "root"); return err },
		func() error {
			_, err := e.client.UserAddWithOptions(ctx, "root", "", &clientv3.UserAddOptions{NoPassword: true})
			return err
		},
		func() error { _, err := e.client.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := e.client.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil && !exists(err) {
			return fmt.Errorf("turn on authentication: %w", explain(err))
		}
	}
	return nil
}

// SetUser implements Users.
func (e *Etcd) SetUser(ctx context.Context, u User) error {
	if err := e.setUser(ctx, u); err != nil {
		return fmt.Errorf("set user %s: %w", u.Name, explain(err))
	}
	return nil
}

func (e *Etcd) setUser(ctx context.Context, u User) error {
	role, err := e.client.RoleGet(ctx, u.Name)
	if errors.Is(err, rpctypes.ErrRoleNotFound) {
		role = &clientv3.AuthRoleGetResponse{}
		_, err = e.client.RoleAdd(ctx, u.Name)
	}
	if err != nil && !exists(err) {
		return err
	}
	want, have := permissions(u), role.Perm
	for _, p := range want {
		if slices.ContainsFunc(have, p.equal) {
			continue
		}
		if _, err := e.client.RoleGrantPermission(ctx, u.Name, p.key, p.end, clientv3.PermissionType(p.kind)); err != nil {
			return err
		}
	}
	for _, h := range have {
		// Granting replaced permissions on equal ranges, so only ranges that are
		// not wanted at all have to be revoked.
		if slices.ContainsFunc(want, func(p permission) bool { return p.key == string(h.Key) && p.end == string(h.RangeEnd) }) {
			continue
		}
		if _, err := e.client.RoleRevokePermission(ctx, u.Name, string(h.Key), string(h.RangeEnd)); err != nil {
			return err
		}
	}
	user, err := e.client.UserGet(ctx, u.Name)
	if errors.Is(err, rpctypes.ErrUserNotFound) {
		user = &clientv3.AuthUserGetResponse{}
		_, err = e.client.UserAddWithOptions(ctx, u.Name, "", &clientv3.UserAddOptions{NoPassword: true})
	}
	if err != nil && !exists(err) {
		return err
	}
	if slices.Contains(user.Roles, u.Name) {
		return nil
	}
	_, err = e.client.UserGrantRole(ctx, u.Name, u.Name)
	return err
}

// RemoveUser implements Users.
func (e *Etcd) RemoveUser(ctx context.Context, name string) error {
	if _, err := e.client.UserDelete(ctx, name); err != nil && !errors.Is(err, rpctypes.ErrUserNotFound) {
		return fmt.Errorf("remove user %s: %w", name, explain(err))
	}
	if _, err := e.client.RoleDelete(ctx, name); err != nil && !errors.Is(err, rpctypes.ErrRoleNotFound) {
		return fmt.Errorf("remove role %s: %w", name, explain(err))
	}
	return nil
}

func exists(err error) bool {
	return errors.Is(err, rpctypes.ErrUserAlreadyExist) || errors.Is(err, rpctypes.ErrRoleAlreadyExist)
}

// permission is one key range of a role, as in etcd.
type permission struct {
	key, end string
	kind     authpb.Permission_Type
}

func (p permission) equal(h *authpb.Permission) bool {
	return p.key == string(h.Key) && p.end == string(h.RangeEnd) && p.kind == h.PermType
}

func permissions(u User) []permission {
	kinds := map[string]authpb.Permission_Type{}
	for _, key := range u.Read {
		kinds[key] = authpb.READ
	}
	for _, key := range u.Write {
		// Writers may read too, because they compare before they write.
		kinds[key] = authpb.READWRITE
	}
	out := make([]permission, 0, len(kinds))
	for key, kind := range kinds {
		begin, wildcard := strings.CutSuffix(key, "*")
		p := permission{key: begin, kind: kind}
		if wildcard || strings.HasSuffix(begin, "/") {
			p.end = clientv3.GetPrefixRangeEnd(begin)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b permission) int { return strings.Compare(a.key, b.key) })
	return out
}
