"""A protoc plugin around grpcio-tools' built-in `--grpc_python_out`, so that buf can call it.

Reads a CodeGeneratorRequest from stdin, writes a CodeGeneratorResponse to stdout, and runs in
`.venv-gen`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def main() -> int:
    """Answer one request; the exit status is protoc's."""
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with tempfile.TemporaryDirectory() as scratch:
        status = generate(request, Path(scratch))
        for path in sorted(Path(scratch).rglob("*_pb2_grpc.py")):
            name = path.relative_to(scratch).as_posix()
            response.file.add(name=name, content=path.read_text())
    sys.stdout.buffer.write(response.SerializeToString())
    return status


def generate(request: plugin_pb2.CodeGeneratorRequest, scratch: Path) -> int:
    """Let protoc write the stubs of those files that declare a service."""
    services = {file.name for file in request.proto_file if file.service}
    wanted = [name for name in request.file_to_generate if name in services]
    if not wanted:
        return 0
    image = scratch / "image.binpb"
    image.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
    arguments = ["protoc", f"--descriptor_set_in={image}", f"--grpc_python_out={scratch}", *wanted]
    return int(protoc.main(arguments))


if __name__ == "__main__":
    sys.exit(main())
