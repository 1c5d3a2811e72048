"""Models as ONNX files, made from what JAX traces.

`export.py` traces a model, `convert.py` walks what was traced, and a table has for each
primitive what becomes of it, a family a file. `graph.py` collects the nodes, `sizes.py`
the sizes that are not known. `marks.py` and `nodes.py` are for layers that ONNX has a
node for, `write.py` writes the file, `check.py` compares it with the model.
"""
