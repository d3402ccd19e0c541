//! The forms that a change of a weight comes in, and their shapes.
//!
//! A weight is a matrix here: `o` rows, one for each output, of `k` columns, which are all its other axes in
//! torch's order. `s` is what the user and the file say of the change's strength:
//! ```text
//! LoRA    W + s · up · down
//! LoHa    W + s · (w1_a · w1_b) * (w2_a · w2_b)       element by element
//! LoKr    W + s · kron(w1, w2)                        either of them may be a product
//! full    W + s · diff
//! ```
//! Those of convolutions may have a kernel between the factors of a product (a Tucker decomposition). DoRA is
//! any of them with a magnitude for each row or column ([`Magnitude`]).

use std::collections::BTreeMap;

use super::keys::Part;
use crate::weights::component::Stored;

/// What a file has of one module.
pub type Parts = BTreeMap<Part, Stored>;

/// Rows and columns of a matrix.
pub type Shape = (usize, usize);

/// What is wrong with a file: the key, and the rest of a sentence about it.
pub type Fault = (String, String);

/// A change whose own shapes fit together. Its numbers are still in the file.
#[derive(Clone, Debug)]
pub enum Form {
    Product(Product),
    Hadamard(Product, Product),
    Kronecker(Factor, Factor),
    Full(Stored),
}

/// `up · down`.
#[derive(Clone, Debug)]
pub struct Product {
    pub up: Stored,   // [o,r]
    pub down: Stored, // [r,k], with a kernel [r,i]
    pub kernel: Option<Kernel>,
    pub rank: usize,
    /// Of the product.
    pub shape: Shape,
}

/// `[r,r,kh,kw]` between the factors: the first axis meets `up`, the second `down`.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub stored: Stored,
    /// LyCORIS has `up` as [r,o] where there is a kernel.
    pub up_is_transposed: bool,
}

#[derive(Clone, Debug)]
pub enum Factor {
    Whole(Stored),
    Product(Product),
}

/// The lengths that DoRA gives to the rows or the columns of the changed weight. As in PEFT, the strength of
/// the change acts before they are given.
#[derive(Clone, Debug)]
pub struct Magnitude {
    pub stored: Stored,
    pub axis: Axis,
}

/// What has a length of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The weights of an output.
    Outputs,
    /// The weights of an input, of a convolution all taps of it.
    Inputs,
}

/// A tensor as a matrix.
pub fn matrix(stored: &Stored) -> Shape {
    let rows = stored.shape.first().copied().unwrap_or(1);
    // A tensor without elements may have any other sizes.
    (rows, stored.shape.iter().skip(1).fold(1, |product, &size| product.saturating_mul(size)))
}

impl Form {
    /// The change of a weight; `None` if these parts are no such change.
    pub fn new(parts: &Parts) -> Result<Option<Form>, Fault> {
        if let Some(product) = Product::new(parts, Part::Up, Part::Down, Some(Part::Mid))? {
            return Ok(Some(Form::Product(product)));
        }
        let first = Product::new(parts, Part::HadaW1A, Part::HadaW1B, Some(Part::HadaT1))?;
        let second = Product::new(parts, Part::HadaW2A, Part::HadaW2B, Some(Part::HadaT2))?;
        match (first, second) {
            (Some(first), Some(second)) if first.shape == second.shape => {
                return Ok(Some(Form::Hadamard(first, second)));
            }
            (Some(one), _) | (None, Some(one)) => {
                return Err((one.up.key, "expected a second product of the same shape with it".into()));
            }
            (None, None) => {}
        }
        let first = Factor::new(parts, Part::LokrW1, Part::LokrW1A, Part::LokrW1B, None)?;
        let second = Factor::new(parts, Part::LokrW2, Part::LokrW2A, Part::LokrW2B, Some(Part::LokrT2))?;
        match (first, second) {
            (Some(first), Some(second)) => return Ok(Some(Form::Kronecker(first, second))),
            (Some(one), None) | (None, Some(one)) => {
                return Err((one.key().into(), "stands alone; expected lokr_w1 and lokr_w2".into()));
            }
            (None, None) => {}
        }
        Ok(parts.get(&Part::Diff).cloned().map(Form::Full))
    }

    pub fn shape(&self) -> Shape {
        match self {
            Form::Product(product) | Form::Hadamard(product, _) => product.shape,
            Form::Kronecker(first, second) => {
                let (first, second) = (first.shape(), second.shape());
                (first.0.saturating_mul(second.0), first.1.saturating_mul(second.1))
            }
            Form::Full(stored) => matrix(stored),
        }
    }

    /// What alpha is divided by. Where there is none, alpha means nothing.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Form::Product(product) | Form::Hadamard(product, _) => Some(product.rank),
            Form::Kronecker(first, second) => second.rank().or(first.rank()),
            Form::Full(_) => None,
        }
    }

    /// A key of the file that the change is named by.
    pub fn key(&self) -> &str {
        match self {
            Form::Product(product) | Form::Hadamard(product, _) => &product.up.key,
            Form::Kronecker(first, _) => first.key(),
            Form::Full(stored) => &stored.key,
        }
    }
}

impl Product {
    fn new(parts: &Parts, up: Part, down: Part, kernel: Option<Part>) -> Result<Option<Self>, Fault> {
        let of_lycoris = kernel != Some(Part::Mid);
        let kernel = kernel.and_then(|kernel| parts.get(&kernel)).cloned();
        let kernel = kernel.map(|stored| Kernel { stored, up_is_transposed: of_lycoris });
        match (parts.get(&up).cloned(), parts.get(&down).cloned()) {
            (Some(up), Some(down)) => Product::of(up, down, kernel).map(Some),
            (Some(alone), None) | (None, Some(alone)) => {
                Err((alone.key, "stands alone; the other factor of its product is missing".into()))
            }
            (None, None) => Ok(None),
        }
    }

    fn of(up: Stored, down: Stored, kernel: Option<Kernel>) -> Result<Self, Fault> {
        let (rank, columns) = matrix(&down);
        let transposed = kernel.as_ref().is_some_and(|kernel| kernel.up_is_transposed);
        let (rows, up_rank) = if transposed { swapped(matrix(&up)) } else { matrix(&up) };
        let (ranks, taps) = match &kernel {
            None => ([rank; 2], 1),
            Some(kernel) => match kernel.stored.shape[..] {
                [first, second, kh, kw] => ([first, second], kh.saturating_mul(kw)),
                _ => {
                    let message = format!("its shape is {:?}; expected [r, r, kh, kw]", kernel.stored.shape);
                    return Err((kernel.stored.key.clone(), message));
                }
            },
        };
        if ranks != [up_rank, rank] || ranks.contains(&0) {
            let between = kernel.map(|kernel| format!(" with {:?} between them", kernel.stored.shape));
            let message = format!(
                "its shape {:?} and that of the other factor, {:?}{}, have no product",
                up.shape,
                down.shape,
                between.unwrap_or_default()
            );
            return Err((up.key, message));
        }
        Ok(Product { up, down, kernel, rank, shape: (rows, columns.saturating_mul(taps)) })
    }
}

fn swapped((a, b): Shape) -> Shape {
    (b, a)
}

impl Factor {
    fn new(
        parts: &Parts,
        whole: Part,
        up: Part,
        down: Part,
        kernel: Option<Part>,
    ) -> Result<Option<Self>, Fault> {
        if let Some(whole) = parts.get(&whole) {
            return Ok(Some(Factor::Whole(whole.clone())));
        }
        Ok(Product::new(parts, up, down, kernel)?.map(Factor::Product))
    }

    pub fn shape(&self) -> Shape {
        match self {
            Factor::Whole(stored) => matrix(stored),
            Factor::Product(product) => product.shape,
        }
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Factor::Whole(_) => None,
            Factor::Product(product) => Some(product.rank),
        }
    }

    fn key(&self) -> &str {
        match self {
            Factor::Whole(stored) => &stored.key,
            Factor::Product(product) => &product.up.key,
        }
    }
}

impl Magnitude {
    /// For a weight of so many rows and inputs; in a convolution an input has several columns.
    pub fn new(parts: &Parts, rows: usize, inputs: usize) -> Result<Option<Self>, Fault> {
        let (stored, axis) = match (parts.get(&Part::MagnitudeVector), parts.get(&Part::DoraScale)) {
            (Some(stored), _) => (stored, Axis::Outputs),
            (None, Some(stored)) if stored.shape.first() == Some(&1) && rows > 1 => (stored, Axis::Inputs),
            (None, Some(stored)) => (stored, Axis::Outputs),
            (None, None) => return Ok(None),
        };
        let expected = if axis == Axis::Outputs { rows } else { inputs };
        if stored.shape.iter().product::<usize>() != expected {
            let message = format!("its shape is {:?}; expected {expected} numbers", stored.shape);
            return Err((stored.key.clone(), message));
        }
        Ok(Some(Magnitude { stored: stored.clone(), axis }))
    }
}
