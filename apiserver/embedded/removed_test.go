package embedded

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// A member that is asked how it is, after it was removed and before it has ended, does not
// take its process along. Any other panic does.
func TestAskedAfterItsRemoval(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		panics any
		want   error
		passes bool
	}{
		"removed":          {etcdserverpb.Maintenance_Status_FullMethodName, notFound, errRemoved, false},
		"a member":         {etcdserverpb.Maintenance_Status_FullMethodName, nil, nil, false},
		"another panic":    {etcdserverpb.Maintenance_Status_FullMethodName, "broken", nil, true},
		"another question": {etcdserverpb.KV_Range_FullMethodName, notFound, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			passed := ""
			answer, err := func() (answer any, err error) {
				defer func() {
					if p := recover(); p != nil {
						passed = fmt.Sprint(p)
					}
				}()
				return whileRemoved(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: c.method}, func(context.Context, any) (any, error) {
					if c.panics != nil {
						panic(c.panics)
					}
					return "well", nil
				})
			}()
			if !errors.Is(err, c.want) || (passed != "") != c.passes || c.panics == nil && answer != "well" {
				t.Errorf("%v, %v, panic %q", answer, err, passed)
			}
		})
	}
}
