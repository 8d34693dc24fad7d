//! From bytes to weights to ten probabilities. Pure: no file, clock or thread, and the same bits for the same input on
//! every processor, because every sum has one order and `exp` is not the C library's.

use std::error::Error;

use ndarray::{Array1, Array2, ArrayView1};
use safetensors::{Dtype, SafeTensors};

/// How many pixels an image has: 8 rows of 8.
pub(crate) const PIXELS: usize = 64;
/// The value of a pixel that is all ink; 0 is none.
pub(crate) const FULL_INK: f32 = 16.0;
/// How many answers there are: the digits 0 to 9.
pub(crate) const CLASSES: usize = 10;

/// A perceptron with one hidden layer of any width.
pub(crate) struct Classifier {
    hidden: Dense,
    output: Dense,
}

struct Dense {
    weight: Array2<f32>,
    bias: Array1<f32>,
}

impl Classifier {
    /// Reads the tensors `fc1.weight`, `fc1.bias`, `fc2.weight` and `fc2.bias` of a safetensors file.
    ///
    /// # Errors
    ///
    /// When the bytes are not a safetensors file, or a tensor is missing, not float32, of another shape or not finite.
    pub(crate) fn from_safetensors(bytes: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let tensors = SafeTensors::deserialize(bytes)?;
        let hidden = Dense::read(&tensors, "fc1")?;
        let output = Dense::read(&tensors, "fc2")?;
        let found = [hidden.weight.ncols(), hidden.weight.nrows(), output.weight.ncols(), output.weight.nrows()];
        if found[0] != PIXELS || found[1] != found[2] || found[3] != CLASSES {
            return Err(
                format!("the layers have {found:?} inputs and outputs, expected [{PIXELS}, n, n, {CLASSES}]").into()
            );
        }
        Ok(Self { hidden, output })
    }

    /// The probability of each digit, for pixels of 0 to [`FULL_INK`], row by row.
    pub(crate) fn probabilities(&self, pixels: &[f32; PIXELS]) -> [f32; CLASSES] {
        let hidden = self.hidden.apply(&ArrayView1::from(pixels)).mapv_into(|x| x.max(0.0));
        let logits = self.output.apply(&hidden.view());
        softmax(std::array::from_fn(|class| logits[class]))
    }
}

impl Dense {
    fn read(tensors: &SafeTensors, layer: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let floats = |name: &str| {
            let tensor = tensors.tensor(name)?;
            if tensor.dtype() != Dtype::F32 {
                return Err(format!("tensor `{name}` is {:?}, expected F32", tensor.dtype()).into());
            }
            let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
            if !values.iter().all(|value| value.is_finite()) {
                return Err(format!("tensor `{name}` has a value that is not finite").into());
            }
            Ok::<_, Box<dyn Error + Send + Sync>>((tensor.shape().to_vec(), values))
        };
        let (shape, weight) = floats(&format!("{layer}.weight"))?;
        let (_, bias) = floats(&format!("{layer}.bias"))?;
        let [outputs, inputs] = shape[..] else {
            return Err(format!("tensor `{layer}.weight` has shape {shape:?}, expected two dimensions").into());
        };
        if bias.len() != outputs {
            return Err(format!("tensor `{layer}.bias` has {} values, expected {outputs}", bias.len()).into());
        }
        Ok(Self { weight: Array2::from_shape_vec((outputs, inputs), weight)?, bias: bias.into() })
    }

    /// One dot product per row: unlike the product of two matrices, it has no kernels chosen by the processor.
    fn apply(&self, input: &ArrayView1<f32>) -> Array1<f32> {
        self.weight.dot(input) + &self.bias
    }
}

fn softmax(logits: [f32; CLASSES]) -> [f32; CLASSES] {
    let max = logits.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let exp = logits.map(|logit| libm::expf(logit - max));
    let sum: f32 = exp.iter().sum();
    exp.map(|value| value / sum)
}

/// The digit with the highest probability; of equals, the smallest.
pub(crate) fn most_likely(probabilities: &[f32; CLASSES]) -> usize {
    (1..CLASSES).fold(0, |best, class| if probabilities[class] > probabilities[best] { class } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    const WEIGHTS: &[u8] = include_bytes!("../../models/digits/model.safetensors");

    #[derive(serde::Deserialize)]
    struct Golden {
        pixels: Vec<f32>,
        probabilities: [f32; CLASSES],
    }

    /// The training script's own forward pass, for the held-out sample it is least sure of. That of `digits-b` is what
    /// its model card's command writes as `golden.json` with `--tests`.
    #[test]
    fn agrees_with_the_training_script() {
        let b = include_bytes!("../../models/digits-b/model.safetensors");
        for (weights, golden) in
            [(WEIGHTS, include_str!("../tests/golden.json")), (b, include_str!("../tests/golden-b.json"))]
        {
            let golden: Golden = serde_json::from_str(golden).unwrap();
            let pixels = golden.pixels.try_into().unwrap();
            let classifier = Classifier::from_safetensors(weights).unwrap();
            let found = classifier.probabilities(&pixels);
            for (found, expected) in found.iter().zip(golden.probabilities) {
                assert!((found - expected).abs() < 1e-5, "found {found}, expected {expected}");
            }
            assert_eq!(most_likely(&found), most_likely(&golden.probabilities));
            assert_eq!(found.map(f32::to_bits), classifier.probabilities(&pixels).map(f32::to_bits));
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let mut logits = [-1e30; CLASSES];
        logits[7] = 1e30;
        let probabilities = softmax(logits);
        assert_eq!(most_likely(&probabilities), 7);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(most_likely(&softmax([3.0; CLASSES])), 0);
    }

    /// A file of the four tensors, zeros unless `change` says otherwise.
    fn file(change: impl Fn(&str, &mut Dtype, &mut Vec<usize>, &mut Vec<u8>)) -> Vec<u8> {
        let tensors =
            [("fc1.weight", vec![2, 64]), ("fc1.bias", vec![2]), ("fc2.weight", vec![10, 2]), ("fc2.bias", vec![10])];
        let tensors = tensors.map(|(name, mut shape)| {
            let mut data = vec![0; shape.iter().product::<usize>() * 4];
            let mut dtype = Dtype::F32;
            change(name, &mut dtype, &mut shape, &mut data);
            (name, dtype, shape, data)
        });
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn refuses_what_is_not_this_model() {
        assert!(Classifier::from_safetensors(&file(|_, _, _, _| ())).is_ok());
        let refused = |bytes: &[u8]| Classifier::from_safetensors(bytes).err().expect("a refusal").to_string();
        assert_eq!(refused(&WEIGHTS[..WEIGHTS.len() - 1]), "incomplete metadata, file not fully covered");
        assert_eq!(refused(b"version https://git-lfs.github.com/spec/v1\n"), "header too large");
        let halves = file(|name, dtype, _, data| {
            if name == "fc2.bias" {
                *dtype = Dtype::F16;
                data.truncate(20);
            }
        });
        assert_eq!(refused(&halves), "tensor `fc2.bias` is F16, expected F32");
        let infinite = file(|name, _, _, data| {
            if name == "fc1.bias" {
                data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
            }
        });
        assert_eq!(refused(&infinite), "tensor `fc1.bias` has a value that is not finite");
        let flat = file(|name, _, shape, _| {
            if name == "fc1.weight" {
                *shape = vec![128];
            }
        });
        assert_eq!(refused(&flat), "tensor `fc1.weight` has shape [128], expected two dimensions");
        let turned = file(|name, _, shape, data| match name {
            "fc1.weight" => *shape = vec![64, 2],
            "fc1.bias" => (*shape, *data) = (vec![64], vec![0; 256]),
            _ => (),
        });
        assert_eq!(refused(&turned), "the layers have [2, 64, 2, 10] inputs and outputs, expected [64, n, n, 10]");
    }
}
