package lab

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// images is the file with the images of the lab's own program.
func (l *Lab) images() string { return filepath.Join(l.Dir, "images.tar") }

// buildImages writes the lab's own program as images: one for pods, and one that holds the
// namespaces of a pod.
func (l *Lab) buildImages() error {
	binary, err := os.ReadFile(l.binary)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/weft", Mode: 0o755, Size: int64(len(binary))}),
	)
	if err == nil {
		_, err = w.Write(binary)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text.Bytes())), nil })
	if err != nil {
		return err
	}
	images := map[name.Reference]v1.Image{}
	for ref, command := range map[string][]string{labImage: {"/usr/bin/weft"}, pauseImage: {"/usr/bin/weft", "lab", "pause"}} {
		img, err := mutate.AppendLayers(empty.Image, layer)
		if err != nil {
			return err
		}
		conf, err := img.ConfigFile()
		if err != nil {
			return err
		}
		conf = conf.DeepCopy()
		conf.OS, conf.Architecture = "linux", runtime.GOARCH
		conf.Config = v1.Config{Entrypoint: command, Env: []string{"PATH=/usr/bin"}}
		if img, err = mutate.ConfigFile(img, conf); err != nil {
			return err
		}
		tag, err := name.NewTag(ref)
		if err != nil {
			return fmt.Errorf("image %s: %w", ref, err)
		}
		images[tag] = img
	}
	return tarball.MultiRefWriteToFile(l.images(), images)
}
