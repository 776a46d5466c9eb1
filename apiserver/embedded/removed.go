package embedded

import (
	"context"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errRemoved is the status of a member that has none any longer.
var errRemoved = status.Error(codes.Unavailable, "this member was removed from the store")

// notFound is why etcd panics when it does not find itself among the members.
const notFound = "failed to find local ID in cluster members"

// whileRemoved refuses to tell the status of a member that was removed and has not ended yet.
// etcd looks for itself among the members then, and panics: the process would end without
// saying what happened to it.
func whileRemoved(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	if info.FullMethod == etcdserverpb.Maintenance_Status_FullMethodName {
		defer func() {
			switch p := recover(); {
			case p == nil:
			case strings.Contains(fmt.Sprint(p), notFound):
				answer, err = nil, errRemoved
			default:
				panic(p)
			}
		}()
	}
	return handle(ctx, req)
}
