"""Gradient descent whose cost a step does not grow with the customers and products.

Keras' Adam reads and writes a whole embedding table every step. Here a step touches the rows of its batch:
Adagrad (Duchi et al., 2011), whose state is one number a weight and needs no decay between touches. The
few other weights get AdamW (Loshchilov and Hutter, 2019). Both are TensorFlow's own fused kernels.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["Optimizer"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-7


class Optimizer:
    """Updates embedding tables row by row, and dense weights.

    Args:
      tables: embeddings, whose gradients are `tf.IndexedSlices`.
      dense: all other weights.
      table_decay, dense_decay: decoupled weight decay; of a table's rows, only of those in the batch.
    """

    def __init__(
        self,
        tables: Sequence[tf.Variable],
        dense: Sequence[tf.Variable],
        table_decay: float,
        dense_decay: float,
    ) -> None:
        self._tables, self._dense = tuple(tables), tuple(dense)
        self._table_decay, self._dense_decay = table_decay, dense_decay
        self._squares = [tf.Variable(tf.zeros_like(table)) for table in self._tables]
        self._moments = [(tf.Variable(tf.zeros_like(w)), tf.Variable(tf.zeros_like(w))) for w in self._dense]

    @property
    def weights(self) -> list[tf.Variable]:
        """All that it updates, in the order of the gradients."""
        return [*self._tables, *self._dense]

    @property
    def state(self) -> list[tf.Variable]:
        """Its own variables, for a checkpoint."""
        return [*self._squares, *(moment for pair in self._moments for moment in pair)]

    def apply(self, gradients: Sequence[Any], step: tf.Tensor, table_rate: Any, dense_rate: Any) -> None:
        """One step, to be traced.

        Args:
          gradients: of `weights`.
          step: steps before this one, int64.
          table_rate, dense_rate: learning rates.
        """
        count = len(self._tables)
        for table, squares, gradient in zip(self._tables, self._squares, gradients[:count], strict=True):
            self._apply_rows(table, squares, gradient, table_rate)
        count_of_steps = tf.cast(step + 1, tf.float32)
        powers = _BETA1**count_of_steps, _BETA2**count_of_steps
        for weight, moments, gradient in zip(self._dense, self._moments, gradients[count:], strict=True):
            weight.assign(weight * (1 - dense_rate * self._dense_decay))
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle, m=moments[0].handle, v=moments[1].handle,
                beta1_power=powers[0], beta2_power=powers[1], lr=dense_rate,
                beta1=_BETA1, beta2=_BETA2, epsilon=_EPSILON, grad=gradient,
            )  # fmt: skip

    def _apply_rows(self, table: tf.Variable, squares: tf.Variable, gradient: Any, rate: Any) -> None:
        # The kernel's threads would race for a row that stands there twice.
        rows, place = tf.unique(tf.reshape(gradient.indices, [-1]))
        summed = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
        if self._table_decay:
            shrink = 1 - rate * self._table_decay
            tf.raw_ops.ResourceScatterMul(resource=table.handle, indices=rows, updates=shrink)
        tf.raw_ops.ResourceSparseApplyAdagradV2(
            var=table.handle, accum=squares.handle, lr=rate, epsilon=_EPSILON, grad=summed, indices=rows
        )
