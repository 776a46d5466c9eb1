package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Alarm makes a store refuse writes when space is short.
type Alarm interface {
	// RaiseNoSpace makes the store refuse all writes except deletions, with
	// ErrFull. It may be repeated.
	RaiseNoSpace(ctx context.Context) error
	// NoSpace reports whether the store refuses writes for want of space. It writes
	// nothing, so it may be asked often.
	NoSpace(ctx context.Context) (bool, error)
	// EndNoSpace allows writes again, unless the store itself is over its quota.
	// It may be repeated.
	EndNoSpace(ctx context.Context) error
}

var _ Alarm = (*Etcd)(nil)

// RaiseNoSpace implements Alarm.
func (e *Etcd) RaiseNoSpace(ctx context.Context) error {
	if err := e.raiseAlarms(ctx); err != nil {
		return fmt.Errorf("raise the no-space alarm: %w", explain(err))
	}
	return nil
}

// NoSpace implements Alarm.
func (e *Etcd) NoSpace(ctx context.Context) (bool, error) {
	status, err := e.status(ctx)
	if err != nil {
		return false, fmt.Errorf("ask for the no-space alarm: %w", explain(err))
	}
	return slices.ContainsFunc(status.Errors, func(alarm string) bool {
		return strings.Contains(alarm, etcdserverpb.AlarmType_NOSPACE.String())
	}), nil
}

// EndNoSpace implements Alarm.
func (e *Etcd) EndNoSpace(ctx context.Context) error {
	if err := e.endAlarms(ctx); err != nil {
		return fmt.Errorf("end the no-space alarm: %w", explain(err))
	}
	return nil
}

// endAlarms ends every no-space alarm. A store that was restored may hold one of a member
// that it no longer has.
func (e *Etcd) endAlarms(ctx context.Context) error {
	maintenance := etcdserverpb.NewMaintenanceClient(e.client.ActiveConnection())
	alarms, err := maintenance.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_GET, Alarm: etcdserverpb.AlarmType_NOSPACE})
	if err != nil {
		return err
	}
	for _, a := range alarms.Alarms {
		_, err := maintenance.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: a.Alarm})
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Etcd) raiseAlarms(ctx context.Context) error {
	members, err := e.client.MemberList(ctx)
	if err != nil {
		return err
	}
	maintenance := etcdserverpb.NewMaintenanceClient(e.client.ActiveConnection())
	for _, m := range members.Members {
		_, err := maintenance.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: m.ID, Alarm: etcdserverpb.AlarmType_NOSPACE})
		if err != nil {
			return err
		}
	}
	return nil
}
