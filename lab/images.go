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

// program makes the layer of an image from a program's file.
func program(file, name string) (v1.Layer, error) {
	binary, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/" + name, Mode: 0o755, Size: int64(len(binary))}),
	)
	if err == nil {
		_, err = w.Write(binary)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text.Bytes())), nil })
}

// buildImages writes the lab's own program as images: one for pods, and one that holds the
// namespaces of a pod. CoreDNS is one too, where it was built.
func (l *Lab) buildImages() error {
	own, err := program(l.binary, "weft")
	if err != nil {
		return err
	}
	type made struct {
		layer   v1.Layer
		command []string
	}
	all := map[string]made{labImage: {own, []string{"/usr/bin/weft"}}, pauseImage: {own, []string{"/usr/bin/weft", "lab", "pause"}}}
	switch coredns, err := program(l.kubernetesProgram("coredns"), "coredns"); {
	case err == nil:
		all[corednsImage] = made{coredns, []string{"/usr/bin/coredns"}}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	images := map[name.Reference]v1.Image{}
	for ref, from := range all {
		command := from.command
		img, err := mutate.AppendLayers(empty.Image, from.layer)
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
