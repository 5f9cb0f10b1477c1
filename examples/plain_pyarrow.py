"""A tensor put and read back with pyarrow, and no package of Sira's. It wants a running server."""

import os

import numpy as np
import pyarrow as pa
from pyarrow import flight

client = flight.connect(os.environ.get("SIRA_URL", "grpc://127.0.0.1:9095"))
array = np.arange(24, dtype="float32").reshape(2, 3, 4)
batch = pa.record_batch([pa.FixedShapeTensorArray.from_numpy_ndarray(array)], names=["tensor"])
writer, answer = client.do_put(flight.FlightDescriptor.for_path("example", "plain"), batch.schema)
writer.write_batch(batch)
writer.done_writing()
print(answer.read().to_pybytes().decode())  # {"key":"example/plain","version":1,"created":true}
writer.close()
table = client.do_get(flight.Ticket(b"example/plain")).read_all()
back = table.column("tensor").combine_chunks().to_numpy_ndarray()
print(back.dtype, back.shape, "the same" if (back == array).all() else "not the same")
